"""The cost of a graph as a function of its symbols, fast enough to ask for thousands of plans.

Groups that depend on the same symbols form a cell; what a cell costs at given values is computed
once and remembered, so a plan costs one look-up per cell. Groups that differ only in the names of
their symbols (the layers of a model) share one compiled function and its remembered values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
from torch import fx
from torch.utils._sympy.symbol import SymT, symbol_is_type

from tokenpass.cost.cost_rules import CostRule
from tokenpass.cost.device import DeviceProfile
from tokenpass.cost.fusion import FusionGroup, fuse
from tokenpass.cost.group_time import Bound, GroupSizes, GroupTimer
from tokenpass.cost.lambdas import SizeFunction, size_function
from tokenpass.cost.memory import PeakMemory, peak_memory
from tokenpass.cost.sizes import ZERO
from tokenpass.errors import InternalError
from tokenpass.ops.cost_record import Work

Objective = Literal["latency", "flops", "memory"]
Levels = Mapping[sympy.Symbol, int]

DATA_DEPENDENT = 128
"""What a size counts as that only the running model knows (how many entries are not zero)."""


@dataclass(frozen=True)
class GroupReport:
    """One fusion group at given levels: for `explain`."""

    names: tuple[str, ...]
    work: Work
    owner: int | None
    seconds: float
    flops: float
    moved_bytes: float
    bound: Bound


@dataclass(frozen=True)
class GraphCost:
    """All fusion groups of a graph; `symbols` are the levels they depend on.

    `unknown` lists operators that no rule covers: they count one pass over their result. `held` are
    the bytes of the graph's inputs, `kept` names the buffers that it hands out.
    """

    groups: tuple[FusionGroup, ...]
    symbols: tuple[sympy.Symbol, ...]
    unknown: tuple[str, ...] = ()
    held: sympy.Expr = ZERO
    kept: frozenset[str] = frozenset()
    _forms: dict[Any, SizeFunction] = field(default_factory=dict, repr=False, compare=False)
    _bound: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def memory(self) -> PeakMemory:
        """Peak bytes as a function of the graph's symbols."""
        return peak_memory(self.groups, self.held, self.kept)

    def point(self, levels: Levels) -> tuple[int, ...]:
        """The values of the symbols that `memory` depends on, in its order."""
        return tuple(_value(levels, symbol) for symbol in self.memory.symbols)

    def bind(
        self,
        profile: DeviceProfile,
        objective: Objective = "latency",
        without_edits: Collection[int] = (),
    ) -> Callable[[Levels], float]:
        """A function from levels to cost (seconds, flops, peak bytes) that remembers its results.

        `without_edits` leaves out the groups that these edits inserted.
        """
        if objective == "memory":
            return lambda levels: self.memory(self.point(levels), without_edits)
        key = (id(profile), objective)
        if key not in self._bound:
            measure = _measure(profile, objective)
            by_owner: dict[int | None, list[FusionGroup]] = {}
            for group in self.groups:
                by_owner.setdefault(group.owner, []).append(group)
            parts = {
                owner: _Evaluator(groups, measure, self._forms)
                for owner, groups in by_owner.items()
            }
            # The profile is kept beside the functions so that its id stays its own.
            self._bound[key] = (profile, parts)
        kept = [f for owner, f in self._bound[key][1].items() if owner not in without_edits]
        return lambda levels: sum(function(levels) for function in kept)

    def evaluate(
        self,
        levels: Levels,
        profile: DeviceProfile,
        objective: Objective = "latency",
        without_edits: Collection[int] = (),
    ) -> float:
        """Cost at these levels: seconds, flops or peak bytes. Every symbol needs a value."""
        return self.bind(profile, objective, without_edits)(levels)

    def evaluate_many(
        self,
        plans: Iterable[Levels],
        profile: DeviceProfile,
        objective: Objective = "latency",
        without_edits: Collection[int] = (),
    ) -> list[float]:
        """Costs of many plans: the same numbers as `evaluate`, one by one."""
        cost = self.bind(profile, objective, without_edits)
        return [cost(levels) for levels in plans]

    def per_group(self, levels: Levels, profile: DeviceProfile) -> list[GroupReport]:
        """Every group's seconds, flops and bytes at these levels, in graph order."""
        timer = GroupTimer(profile)
        reports = []
        for group in self.groups:
            form, symbols = size_function(group, self._forms)
            sizes = form(tuple(_value(levels, symbol) for symbol in symbols))
            seconds, bound = timer.parts(sizes)
            reports.append(
                GroupReport(
                    names=group.names,
                    work=group.work,
                    owner=group.owner,
                    seconds=seconds,
                    flops=sizes.flops,
                    moved_bytes=sizes.moved_bytes,
                    bound=bound,
                )
            )
        return reports

    def per_node(self, levels: Levels, profile: DeviceProfile) -> dict[str, float]:
        """Seconds by node name; a group's time is shared equally by its members."""
        return {
            name: report.seconds / len(report.names)
            for report in self.per_group(levels, profile)
            for name in report.names
        }

    def per_owner(self, levels: Levels, profile: DeviceProfile) -> dict[int | None, float]:
        """Seconds by the edit that inserted the work; None is the model's own."""
        seconds: dict[int | None, float] = {}
        for report in self.per_group(levels, profile):
            seconds[report.owner] = seconds.get(report.owner, 0.0) + report.seconds
        return seconds


class _Evaluator:
    """Sum over cells of remembered values."""

    def __init__(
        self,
        groups: Iterable[FusionGroup],
        measure: Callable[[GroupSizes], float],
        forms: dict[Any, SizeFunction],
    ) -> None:
        self._measure = measure
        cells: dict[tuple[sympy.Symbol, ...], dict[SizeFunction, int]] = {}
        for group in groups:
            form, symbols = size_function(group, forms)
            counts = cells.setdefault(symbols, {})
            counts[form] = counts.get(form, 0) + 1
        # Cells with the same forms and counts (equal layers) share one memory.
        memories: dict[frozenset[tuple[SizeFunction, int]], dict[tuple[int, ...], float]] = {}
        self._cells = []
        for symbols, counts in cells.items():
            key = frozenset(counts.items())
            self._cells.append((symbols, tuple(counts.items()), memories.setdefault(key, {})))
        self._values: dict[tuple[SizeFunction, tuple[int, ...]], float] = {}

    def __call__(self, levels: Levels) -> float:
        total = 0.0
        for symbols, counts, memory in self._cells:
            try:
                point = tuple([levels[symbol] for symbol in symbols])
            except KeyError:
                point = tuple([_value(levels, symbol) for symbol in symbols])
            cost = memory.get(point)
            if cost is None:
                cost = memory[point] = sum(count * self._one(form, point) for form, count in counts)
            total += cost
        return total

    def _one(self, form: SizeFunction, point: tuple[int, ...]) -> float:
        key = (form, point)
        if key not in self._values:
            self._values[key] = self._measure(form(point))
        return self._values[key]


def _measure(profile: DeviceProfile, objective: Objective) -> Callable[[GroupSizes], float]:
    return GroupTimer(profile) if objective == "latency" else lambda sizes: sizes.flops


def _value(levels: Levels, symbol: sympy.Symbol) -> int:
    if symbol in levels:
        return levels[symbol]
    if symbol_is_type(symbol, SymT.UNBACKED_INT):
        return DATA_DEPENDENT
    raise InternalError(f"cost: no level for symbol {symbol}")


def graph_cost(gm: fx.GraphModule, op_costs: Mapping[Any, CostRule] | None = None) -> GraphCost:
    """The cost of a traced graph whose nodes carry fake values in `meta["val"]`.

    `op_costs` maps operators of our own to their cost rules (called with the fake result first,
    then the operator's arguments).
    """
    fused = fuse(gm.graph, op_costs or {})
    symbols = {symbol for group in fused.groups for symbol in group.symbols}
    ordered = tuple(sorted(symbols, key=str))
    return GraphCost(fused.groups, ordered, fused.unknown, fused.held, fused.kept)
