"""Rules of operators that put rows in an order of their own, and back: sorts, tallies, groups.

    sort       k -> k[p], p          out[j] = in[p[j]]: rows change places, none is lost
    divide     p -> p // c, p % c    the row, or the entry within it, of a row-major place
    count      k -> #{k = e}         the same in every order
    groups     x[p], ends -> x[p] @ w[k[p]]    with ends the running counts of k, and k[p] rising
    put back   x[p] -> x             y[p[j]] = x[j]; with j for x, y is the inverse of p
    add back   x[p // c] -> sum      y[p[j] // c] += x[j]

Each gives for some of the rows, in any order, what it gives for all of them at these rows, as long
as everything that happens in between does. `row_sets.py` shows that for a graph; what is not shown
is restored before the sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.fx import Node

from tokenpass.graph.axis import (
    Axis,
    Dim,
    Factor,
    Label,
    Size,
    Unalignable,
    factors,
    is_constant,
    same_size,
)
from tokenpass.graph.call import Call, Operand, Runner
from tokenpass.graph.demand_lattice import Demand
from tokenpass.graph.meaning import Meaning, Places, Tally, cut_like, keys_of
from tokenpass.graph.rule import Blocked, Kind, Rule, block_dims, join_demands
from tokenpass.graph.rules_apart import Pointwise
from tokenpass.graph.rules_position import Along

aten = torch.ops.aten


def product(sizes: Sequence[Size]) -> Size:
    """Entries of some factors together."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def whole_order(operand: Operand) -> bool:
    """Whether an operand is a list of numbers that names every row exactly once."""
    meaning = operand.meaning
    if not isinstance(meaning, Places) or len(operand.label) != 1:
        return False
    return [f.axis.root for f in operand.label[0]] == [axis.root for axis in meaning.own]


@dataclass(frozen=True)
class Order(Along):
    """`sort` and `argsort`: rows in the order of their keys count the same by axes of their own.

    `argsort` of such an order is the way back.
    """

    places_at: int = 0

    def flat(self, call: Call) -> bool:
        """Whether a single dimension is sorted."""
        return len(call.operands[0].label) == 1

    def inverse(self, call: Call) -> Places | None:
        """The order that is sorted, where one is."""
        operand = call.operands[0]
        rising = not call.get("descending", False) and len(call.out_shapes) == 1
        meaning = operand.meaning
        return meaning if rising and isinstance(meaning, Places) and whole_order(operand) else None

    def infer(self, call: Call) -> tuple[Label, ...]:
        if not self.flat(call):
            return super().infer(call)
        dim, back = call.operands[0].label[0], self.inverse(call)
        if back is not None:
            pairs = zip(back.into, dim, strict=True)
            return ((tuple(replace(f, cut=g.cut) for f, g in pairs),),)
        out = tuple(self.twin(call, at, factor) for at, factor in enumerate(dim))
        keys = call.node.args[0]
        falls = bool(call.get("descending", False))
        known = keys_of(keys) if isinstance(keys, Node) and not falls else None
        for factor in out:
            call.table.ordered_by[factor.axis] = known
        return tuple((out,) for _ in call.out_shapes)

    def twin(self, call: Call, at: int, factor: Factor) -> Factor:
        """An axis for the same rows in the order of the keys."""
        key, name = (call.node, "order", at), f"{call.node.name}.{at}"
        return Factor(call.table.fresh(key, factor.axis.size, name), factor.cut)

    def blocked(self, call: Call) -> list[Blocked]:
        return [] if call.node in call.table.row_wise else super().blocked(call)

    def meanings(self, call: Call) -> tuple[Meaning | None, ...]:
        none = super().meanings(call)
        if not self.flat(call):
            return none
        dim, back = call.operands[0].label[0], self.inverse(call)
        if back is not None:
            return (Places(plain(dim), tuple(f.axis for f in back.into)),)
        (out,) = self.infer(call)[0]
        places = Places(plain(dim), tuple(f.axis for f in out))
        return (*none[: self.places_at], places, *none[self.places_at + 1 :])

    def minds_rows(self, call: Call) -> bool:
        return self.inverse(call) is not None


def plain(dim: Dim) -> Dim:
    """A dimension's factors at full length."""
    return tuple(Factor(f.axis) for f in dim)


@dataclass(frozen=True)
class Divide(Pointwise):
    """Division with a whole result; of a row-major place: the place among its leading factors.

    `rest`: the remainder, which is the place among the factors behind them.
    """

    rest: bool = False

    def parts(self, call: Call) -> tuple[Places, Places] | None:
        """(leading, trailing) factors, if the divisor is the number of trailing places."""
        meaning, other = call.operands[0].meaning, call["other"]
        rounds = call.get("rounding_mode", "floor") is not None
        if not isinstance(meaning, Places) or isinstance(other, Operand | float) or not rounds:
            return None
        for at in range(1, len(meaning.into)):
            if same_size(product([f.axis.size for f in meaning.into[at:]]), other):
                parts = [slice(0, at), slice(at, None)]
                lead, trail = (Places(meaning.into[s], meaning.own[s]) for s in parts)
                return lead, trail
        return None

    def meanings(self, call: Call) -> tuple[Meaning | None, ...]:
        parts = self.parts(call)
        return (None if parts is None else parts[self.rest],)

    def minds_rows(self, call: Call) -> bool:
        return self.parts(call) is not None

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        parts = self.parts(call)
        if parts is not None:
            shared = cut_like(parts[1], call.operands[0].label)
            call = call.with_arguments(other=product(runner.shape((shared,))))
        return call.execute()


@dataclass(frozen=True)
class Count(Rule):
    """`histc` of keys 0, 1, ..: how often each occurs."""

    kind: ClassVar[Kind] = "reducing"

    def infer(self, call: Call) -> tuple[Label, ...]:
        return (call.fresh_label(),)

    def blocked(self, call: Call) -> list[Blocked]:
        if call.node in call.table.row_wise:
            return []
        return block_dims(0, call.operands[0], range(len(call.operands[0].label)))

    def meanings(self, call: Call) -> tuple[Meaning | None, ...]:
        keys, bins = call.node.args[0], call["bins"]
        whole = call["min"] == 0 and call["max"] == bins - 1
        return (Tally(keys_of(keys)) if whole and isinstance(keys, Node) else None,)

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        return [join_demands(out).read_whole()]


@dataclass(frozen=True)
class Groups(Rule):
    """`y[j] = x[j] @ w[e]` with `ends[e - 1] <= j < ends[e]`: one product for each run of rows."""

    def rows(self, call: Call) -> tuple[Operand, Operand, Operand | None]:
        """Rows, matrices and ends."""
        rows, matrices, *rest = call.operands
        ends = call.get("offs")
        return rows, matrices, ends if rest and isinstance(ends, Operand) else None

    def infer(self, call: Call) -> tuple[Label, ...]:
        rows, matrices, _ = self.rows(call)
        if len(rows.label) != 2 or len(matrices.label) != 3:
            raise Unalignable("groups of rows of other dimensions")
        new = call.fresh_label()  # equal rows of two groups meet different matrices
        return ((new[0] if is_constant(rows.label[0]) else rows.label[0], matrices.label[2]),)

    def minds_rows(self, call: Call) -> bool:
        rows, matrices, ends = self.rows(call)
        if ends is None or rows.meaning or matrices.meaning or len(rows.label) != 2:
            return False
        ordered = {axis.root: keys for axis, keys in call.table.ordered_by.items()}
        tally = ends.meaning
        return (
            isinstance(tally, Tally)
            and tally.ends
            and bool(rows.label[0])
            and all(ordered.get(f.axis.root) is tally.keys for f in rows.label[0])
        )

    def blocked(self, call: Call) -> list[Blocked]:
        keep = {(0, (0, at)) for at in range(len(call.operands[0].label[0]))}
        found = [
            b for at, o in enumerate(call.operands) for b in block_dims(at, o, range(len(o.label)))
        ]
        sound = call.node in call.table.row_wise
        return [b for b in found if not (sound and b in keep)]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        return [join_demands(out).read_whole() for _ in call.operands]


@dataclass(frozen=True)
class PutBack(Rule):
    """`index_put` of a whole order: rows where they were, or, of 0, 1, .., the way back."""

    kind: ClassVar[Kind] = "joining"

    def order(self, call: Call) -> tuple[Operand, Places]:
        """The order and its rows; raises `Unalignable` where no whole one is written to."""
        given = [index for index in call["indices"] if index is not None]
        fits = len(given) == 1 and call["indices"][0] is given[0] and not call["accumulate"]
        meaning = given[0].meaning if fits else None
        if not isinstance(meaning, Places) or not whole_order(given[0]):
            raise Unalignable("not every row is written exactly once")
        return given[0], meaning

    def back(self, call: Call) -> bool:
        """Whether the entries 0, 1, .. are written, which makes the way back."""
        values = call.node.args[2]
        return (
            isinstance(values, Node)
            and values.target is aten.arange.default
            and len(call["self"].label) == 1
        )

    def infer(self, call: Call) -> tuple[Label, ...]:
        (order, places), values = self.order(call), call["values"]
        (rows,) = order.label
        if not self.back(call) and axes(values.label[:1]) != axes(order.label):
            raise Unalignable("what is written does not count the rows of the order")
        pairs = zip(places.into, rows, strict=True)
        out = tuple(replace(f, cut=g.cut) for f, g in pairs)
        return ((out, *values.label[1:]),)

    def meanings(self, call: Call) -> tuple[Meaning | None, ...]:
        try:
            order, places = self.order(call)
        except Unalignable:
            return (None,)
        into = tuple(f.axis for f in places.into)
        return (Places(plain(order.label[0]), into) if self.back(call) else None,)

    def minds_rows(self, call: Call) -> bool:
        try:
            self.infer(call)
        except Unalignable:
            return False
        return call["values"].meaning is None

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        order, values = self.order(call)[0].value, call["values"].value
        if self.back(call):
            values = torch.arange(order.shape[0], dtype=values.dtype, device=values.device)
        base = values.new_empty([order.shape[0], *values.shape[1:]])
        return aten.index_put.default(base, [order], values)


def axes(label: Label) -> list[Axis]:
    """The axes of a label, in order."""
    return [factor.axis.root for factor in factors(label)]


@dataclass(frozen=True)
class AddBack(Rule):
    """`index_add` along the first dimension: what belongs to one row is summed."""

    kind: ClassVar[Kind] = "reducing"

    def parts(self, call: Call) -> tuple[Operand, Dim, Operand]:
        """Base, rows as they are cut now, and what is added; raises `Unalignable` otherwise."""
        base, index, source = call["self"], call["index"], call["source"]
        rows = index.meaning
        if (
            not isinstance(rows, Places)
            or call.dim() != 0
            or len(index.label) != 1
            or axes(index.label) != axes(source.label[:1])
            or base.meaning is not None
            or not (is_constant(base.label[0]) or axes(base.label[:1]) == axes((rows.into,)))
        ):
            raise Unalignable("rows are added by numbers that are not known to be theirs")
        return base, cut_like(rows, index.label), source

    def infer(self, call: Call) -> tuple[Label, ...]:
        _, rows, source = self.parts(call)
        return ((rows, *source.label[1:]),)

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        base, _, _ = self.parts(call)
        rows = base.label[:1] if is_constant(base.label[0]) else outs[0][:1]
        targets = {id(base): (*rows, *base.label[1:])}
        return [targets.get(id(operand), operand.label) for operand in call.operands]

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        base = self.parts(call)[0]
        if is_constant(base.label[0]):  # all of it is one row
            value = base.value.narrow(0, 0, 1)
            value = value.expand([*runner.shape(outs[0][:1]), *value.shape[1:]])
            call = replace(call, bound={**call.bound, "self": replace(base, value=value)})
        return call.execute()

    def minds_rows(self, call: Call) -> bool:
        try:
            _, _, source = self.parts(call)
        except Unalignable:
            return False
        return source.meaning is None
