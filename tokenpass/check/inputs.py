"""A call that is made again and again: what the model changes of its inputs is put back.

Decoders write to the cache that they are given, and let it grow: lists, attributes and contents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import zip_longest
from types import ModuleType
from typing import Any

import torch

from tokenpass.check.facts import Call
from tokenpass.check.pairs import Prepared

DEPTH = 6
"""How many objects within objects are looked into."""

SIMPLE = (
    *(str, bytes, int, float, complex, type, Enum, ModuleType),
    *(torch.dtype, torch.device, torch.nn.Module),
)
"""What a call does not change, or what is not its own: nothing in these is looked at."""


def described(model: Any, call: Call) -> str:
    """Dtypes and shapes of a call's tensors, and the dtypes of the model's parameters."""
    found = (value for value in parts(call) if isinstance(value, torch.Tensor))
    shapes = [f"{short(x.dtype)}{list(x.shape)}" for x in found]
    held = model.parameters() if isinstance(model, torch.nn.Module) else ()
    dtypes = sorted({short(x.dtype) for x in held})
    return f"{', '.join(shapes)}; parameters {', '.join(dtypes)}"


def short(dtype: torch.dtype) -> str:
    """A dtype's name."""
    return str(dtype).removeprefix("torch.")


def parts(value: Any, depth: int = DEPTH, seen: set[int] | None = None) -> Iterator[Any]:
    """Tensors, containers and objects with attributes, each once, outer ones first."""
    seen = set() if seen is None else seen
    if isinstance(value, SIMPLE) or value is None or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    inner: list[Any] = []
    if isinstance(value, dict):
        inner += value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        inner += value
    if hasattr(value, "__dict__") and not callable(value):
        inner += vars(value).values()
    if isinstance(value, dict | list) or hasattr(value, "__dict__"):
        yield value
    for one in inner if depth else ():
        yield from parts(one, depth - 1, seen)


@dataclass(eq=False)
class Repeated:
    """A call whose inputs are as they were each time that it is prepared.

    The same objects and the same memory: what a compiled call is guarded by holds.
    """

    call: Call
    held: list[tuple[Any, Any]] = field(default_factory=list)
    tensors: list[tuple[torch.Tensor, torch.Tensor, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for value in parts(self.call):
            if isinstance(value, torch.Tensor):
                self.tensors.append((value, value.detach().clone(), version(value)))
            else:
                self.held.append((value, contents(value)))

    def prepare(self) -> None:
        """Put back what was changed."""
        for value, (items, attributes) in self.held:
            if isinstance(value, list) and not same(enumerate(value), enumerate(items)):
                list.__setitem__(value, slice(None), items)
            elif isinstance(value, dict) and not same(value.items(), items.items()):
                kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
                kind.clear(value)  # what a subclass refuses is no matter here
                kind.update(value, items)
            if attributes is not None and not same(vars(value).items(), attributes.items()):
                vars(value).clear()
                vars(value).update(attributes)
        for at, (value, content, before) in enumerate(self.tensors):
            if before is None or version(value) != before:
                with torch.no_grad():
                    value.copy_(content)
                self.tensors[at] = (value, content, version(value))

    def result(self, function: Callable[..., Any], read: Callable[[Any], Any]) -> Any:
        """What is read of a function's output, before inputs are put back that it may share."""
        args, kwargs = self.call
        try:
            return read(function(*args, **kwargs))
        finally:
            self.prepare()


def same(now: Iterable[tuple[Any, Any]], before: Iterable[tuple[Any, Any]]) -> bool:
    """Whether the same objects stand in the same places."""
    pairs = zip_longest(now, before)
    return all(a and b and a[0] == b[0] and a[1] is b[1] for a, b in pairs)


def contents(value: Any) -> tuple[Any, dict[str, Any] | None]:
    """Items of a list or mapping, and attributes, as they are now."""
    items = dict(value) if isinstance(value, dict) else None
    items = list(value) if isinstance(value, list) else items
    return items, dict(vars(value)) if hasattr(value, "__dict__") else None


def timeable(function: Callable[..., Any], repeated: Repeated) -> Prepared:
    """The call as what is timed: it begins and ends when the device has done all before it."""
    args, kwargs = repeated.call

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def call() -> None:
        function(*args, **kwargs)
        wait()

    def prepare() -> None:
        repeated.prepare()
        wait()

    return Prepared(call, prepare)


def version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version
