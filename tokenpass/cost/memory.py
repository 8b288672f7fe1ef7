"""Peak bytes of a graph: what its inputs hold, and the most that lives beside them at once.

Every fusion group allocates what others read of it; a buffer is freed behind the last group that
reads it. Generated kernels write in place where an input of the same size ends with them, library
calls do not.

    linear -> [a]    gelu: a in place -> [b]    linear -> [c], b ends        peak: b + c
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import sympy

from tokenpass.cost.fusion import FusionGroup
from tokenpass.cost.lambdas import number_function

Point = tuple[int, ...]


@dataclass(frozen=True)
class Life:
    """A buffer of `size` bytes: there from the start of step `born` to the end of step `dies`."""

    size: sympy.Expr
    born: int
    dies: int


@dataclass(frozen=True)
class PeakMemory:
    """Peak bytes as a function of the values of `symbols`.

    `held` are the bytes of the graph's inputs, weights among them, which live throughout; `kept`
    names the buffers that the graph hands out.
    """

    groups: tuple[FusionGroup, ...]
    held: sympy.Expr
    kept: frozenset[str]
    symbols: tuple[sympy.Symbol, ...]
    _peaks: dict[frozenset[int], Callable[[Point], float]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, point: Point, without_edits: Collection[int] = ()) -> float:
        """Peak bytes at these values, without what these edits would insert."""
        without = frozenset(without_edits)
        if without not in self._peaks:
            self._peaks[without] = self._peak(without)
        return self._peaks[without](point)

    def while_running(self, point: Point) -> dict[str, float]:
        """Bytes held while each operator's kernel runs, by the operator's name."""
        held, steps = self._timeline(frozenset())
        values = steps(point)
        return {
            name: held(point) + values[step]
            for step, group in enumerate(run_order(self.groups))
            for name in group.names
        }

    def _peak(self, without: frozenset[int]) -> Callable[[Point], float]:
        held, steps = self._timeline(without)
        return lambda point: held(point) + max(steps(point))

    def _timeline(
        self, without: frozenset[int]
    ) -> tuple[Callable[[Point], float], Callable[[Point], list[float]]]:
        """The inputs' bytes, and the bytes beside them at each step and behind the last."""
        found = lives(self.groups, self.kept, without).values()
        sizes = list(dict.fromkeys(life.size for life in found))
        place = {size: at for at, size in enumerate(sizes)}
        held = number_function(self.symbols, [self.held])
        numbers = number_function(self.symbols, sizes)
        entries = [(place[life.size], life.born, life.dies + 1) for life in found]
        last = 1 + max((ended for _, _, ended in entries), default=0)

        def steps(point: Point) -> list[float]:
            values = numbers(point)
            change = [0.0] * last
            for at, born, ended in entries:
                change[born] += values[at]
                change[ended] -= values[at]
            return list(accumulate(change))

        return lambda point: held(point)[0], steps


def peak_memory(
    groups: tuple[FusionGroup, ...], held: sympy.Expr, kept: frozenset[str]
) -> PeakMemory:
    """The peak of a graph's groups, over all symbols that their buffers' sizes depend on."""
    sizes = [held, *(size for group in groups for _, size in group.buffers.makes)]
    found = {s for size in sizes for s in size.free_symbols if isinstance(s, sympy.Symbol)}
    return PeakMemory(groups, held, kept, tuple(sorted(found, key=str)))


def lives(
    groups: Sequence[FusionGroup], kept: Collection[str], without_edits: Collection[int] = ()
) -> dict[str, Life]:
    """The life of every buffer by name; steps are the places of groups in `run_order`.

    What an edit that is left out would have handed on stands for what it took: such a buffer is
    born where it is first read, so that the two do not count at once.
    """
    order = run_order(groups)
    left_out = {id(g) for g in groups if g.owner is not None and g.owner in without_edits}
    running = [group for group in order if id(group) not in left_out]
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, group in enumerate(running):
        for name in group.buffers.reads:
            first.setdefault(name, step)
            last[name] = step
    last |= dict.fromkeys(kept, len(running))
    found: dict[str, Life] = {}
    for step, group in enumerate(running):
        for name, size in group.buffers.makes:
            found[name] = Life(size, step, last.get(name, step))
    for group in order:
        if id(group) in left_out:
            for name, size in group.buffers.makes:
                if name in last:
                    found[name] = Life(size, first.get(name, len(running)), last[name])
    return _in_place(running, found)


def _in_place(running: Sequence[FusionGroup], found: dict[str, Life]) -> dict[str, Life]:
    """An input that ends with a generated kernel makes room for an output of its size."""
    for step, group in enumerate(running):
        free = [n for n in group.buffers.reads if n in found and found[n].dies == step]
        for _, size in group.buffers.makes if group.buffers.generated else ():
            taken = next((name for name in free if found[name].size == size), None)
            if taken is not None and found[taken].born < step:
                free.remove(taken)
                found[taken] = replace(found[taken], dies=step - 1)
    return found


def run_order(groups: Sequence[FusionGroup]) -> list[FusionGroup]:
    """The order in which kernels run: inputs first, else that of their last operators."""
    maker = {name: at for at, group in enumerate(groups) for name, _ in group.buffers.makes}
    waits: list[set[int]] = [
        {maker[name] for name in group.buffers.reads if name in maker} - {at}
        for at, group in enumerate(groups)
    ]
    readers: dict[int, list[int]] = {}
    for at, sources in enumerate(waits):
        for source in sources:
            readers.setdefault(source, []).append(at)
    ready = [(group.buffers.last, at) for at, group in enumerate(groups) if not waits[at]]
    heapq.heapify(ready)
    order: list[FusionGroup] = []
    while ready:
        _, at = heapq.heappop(ready)
        order.append(groups[at])
        for reader in readers.get(at, ()):
            waits[reader].discard(at)
            if not waits[reader]:
                heapq.heappush(ready, (groups[reader].buffers.last, reader))
    return order
