"""What calls on one cache leave for later ones: it belongs to the cache, and goes with it.

A call's tensors are looked at by their storage: whoever reads a cache that an earlier call handed
out, or wrote to, finds what that call left. Another cache has none, or its own; with the cache's
memory it is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tokenpass.rewrite.replacing import Given

Name = tuple[str, str]
"""(policy, site)."""


@dataclass(eq=False)
class Carried:
    """What was kept, and what was derived of it, by what it was derived for."""

    kept: Mapping[Name, Tensor]
    derived: dict[Given, Tensor] = field(default_factory=dict)

    def value(self, given: Given) -> Tensor:
        """What a call is given."""
        if given not in self.derived:
            self.derived[given] = given.form(self.threshold(given))
        return self.derived[given]

    def threshold(self, given: Given) -> Tensor:
        """The thresholds behind it; the default where nothing was kept."""
        seen = self.kept.get((given.policy, given.site))
        return given.default if seen is None else given.derive(seen).to(given.default)

    def plus(self, more: Mapping[Name, Tensor]) -> Carried:
        """The same and what another call kept, added."""
        both = {name: self.kept[name] + more[name] for name in self.kept.keys() & more.keys()}
        return Carried({**self.kept, **more, **both})


@dataclass(eq=False)
class Caches:
    """What belongs to which cache."""

    known: dict[int, tuple[StorageWeakRef, Carried]] = field(default_factory=dict)

    def find(self, values: Iterable[Any]) -> Carried | None:
        """What belongs to the first cache among some values; None if none of them is known."""
        if not self.known:
            return None
        for value in values:
            found = self.known.get(storage(value)) if isinstance(value, Tensor) else None
            if found is not None and not found[0].expired():
                return found[1]
        return None

    def keep(self, values: Iterable[Any], carried: Carried) -> None:
        """Let it belong to all of some caches."""
        self.forget_freed()
        for value in values:
            if isinstance(value, Tensor) and storage(value):
                self.known[storage(value)] = (StorageWeakRef(value.untyped_storage()), carried)

    def forget_freed(self) -> None:
        """Forget what belongs to caches that are no more."""
        for address in [a for a, (alive, _) in self.known.items() if alive.expired()]:
            del self.known[address]


CACHES = Caches()
"""Those of the process: a prompt's graph and a decoding step's are compiled apart."""


@dataclass(frozen=True)
class Places:
    """Where a graph has its caches: indices of outputs, and of inputs that it writes to.

    `read`: the inputs that may be a cache.
    """

    handed_out: tuple[int, ...]
    written: tuple[int, ...]
    read: tuple[int, ...]


@dataclass(eq=False)
class CarryingRun:
    """A graph with its carried inputs and outputs, called without them.

    `run`: the lowered graph, flat outputs, the kept ones last. `structure` brings its own outputs
    into the form of the graph. `last`: what the last call was given came from.
    """

    run: Callable[..., Any]
    structure: Callable[[list[Any]], Any]
    given: tuple[Given, ...]
    kept: tuple[Name, ...]
    places: Places
    caches: Caches = field(default_factory=lambda: CACHES)
    nothing: Carried = field(default_factory=lambda: Carried({}))
    last: Carried = field(default_factory=lambda: Carried({}))

    def thresholds(self) -> dict[str, Tensor]:
        """Those that the last call was given, by site, for the plan's reference."""
        return {one.site: self.last.threshold(one) for one in self.given}

    def __call__(self, *inputs: Any) -> Any:
        before = self.caches.find(inputs[at] for at in self.places.read)
        self.last = self.nothing if before is None else before
        outputs = list(self.run(*inputs, *map(self.last.value, self.given)))
        own = outputs[: len(outputs) - len(self.kept)]
        after = self.after(before, outputs[len(own) :])
        if after is not None:
            self.caches.keep([own[at] for at in self.places.handed_out], after)
            self.caches.keep([inputs[at] for at in self.places.written], after)
        return self.structure(own)

    def after(self, before: Carried | None, kept: Sequence[Tensor]) -> Carried | None:
        """What belongs to the call's caches from now on.

        A cache that is written in place may begin anew with any prompt: the last one counts.
        """
        if not self.kept:
            return before
        # a compiled graph may use its outputs' memory again
        now = {name: x.detach().clone() for name, x in zip(self.kept, kept, strict=True)}
        if before is None or self.places.written:
            return Carried(now)
        return before.plus(now)


def storage(value: Tensor) -> int:
    """The address of what holds a tensor's memory, 0 where it has none of its own."""
    if type(value) not in (Tensor, torch.nn.Parameter) or not value.numel():
        return 0
    return int(value.untyped_storage()._cdata)
