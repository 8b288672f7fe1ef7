"""Rules of operators that only arrange dimensions: reshapes, permutations, repeats, lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tokenpass.graph.axis import Axis, Label, find_axis
from tokenpass.graph.call import Call, Operand, Runner, is_one, is_zero
from tokenpass.graph.demand_lattice import NOTHING, Demand
from tokenpass.graph.join import (
    Irregular,
    broadcast,
    broadcast_targets,
    regroup,
)
from tokenpass.graph.meaning import Meaning
from tokenpass.graph.rule import Blocked, Kind, Rule, block_dims, cut_places, join_demands


@dataclass(frozen=True)
class Layout(Rule):
    """Entries are moved or repeated, none is changed."""

    def meanings(self, call: Call) -> tuple[Meaning | None, ...]:
        return (call.operands[0].meaning,)

    def minds_rows(self, call: Call) -> bool:
        return True

    def keeps_sums(self, call: Call) -> bool:
        return True


@dataclass(frozen=True)
class Reshape(Layout):
    """Row-major factors distributed over new dimensions: `(b, n), c -> b, n, c`."""

    def infer(self, call: Call) -> tuple[Label, ...]:
        flat = [factor for dim in call.operands[0].label for factor in dim]
        try:
            return (regroup(flat, call.out_shapes[0], call.table)[0],)
        except Irregular:
            if any(f.cut is not None for f in flat):
                raise
            return (call.fresh_label(),)

    def blocked(self, call: Call) -> list[Blocked]:
        operand = call.operands[0]
        places = cut_places(operand, range(len(operand.label)))
        flat = [factor for dim in operand.label for factor in dim]
        try:
            split = regroup(flat, call.out_shapes[0], call.table)[1]
        except Irregular:
            return [(0, place) for place in places]
        return [(0, (d, p)) for d, p in places if any(operand.label[d][p] is s for s in split)]

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        return torch.ops.aten.reshape.default(call.operands[0].value, runner.shape(outs[0]))


@dataclass(frozen=True)
class Permute(Layout):
    """Dimensions in another order; `order` computes it from the call."""

    order: Callable[[Call], list[int]]

    def infer(self, call: Call) -> tuple[Label, ...]:
        label = call.operands[0].label
        return (tuple(label[at] for at in self.order(call)),)

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        # demand speaks of the first dimension with the axis: scores hold it twice
        joined, label = join_demands(out), call.operands[0].label
        places = [at for at, dim in enumerate(label) if find_axis((dim,), axis)]
        moved = [at for at in self.order(call) if at in places]
        return [joined if places and moved[0] == places[0] else joined.read_whole()]


def swap_order(call: Call) -> list[int]:
    """Dimension order of `transpose.int`."""
    order = list(range(len(call.operands[0].label)))
    first, second = call.dim("dim0"), call.dim("dim1")
    order[first], order[second] = order[second], order[first]
    return order


def reverse_order(call: Call) -> list[int]:
    """Dimension order of `t` and `numpy_T`."""
    return list(range(len(call.operands[0].label)))[::-1]


def listed_order(call: Call) -> list[int]:
    """Dimension order of `permute`."""
    rank = len(call.operands[0].label)
    return [dim % rank for dim in call["dims"]]


def moved_order(call: Call) -> list[int]:
    """Dimension order of `movedim.int`."""
    rank = len(call.operands[0].label)
    source, goal = call["source"] % rank, call["destination"] % rank
    order = [at for at in range(rank) if at != source]
    order.insert(goal, source)
    return order


@dataclass(frozen=True)
class Expand(Layout):
    """Dimensions of size 1 repeated: all entries along them are equal."""

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, shape = call.operands[0].label, call.out_shapes[0]
        skip, old = len(shape) - len(label), call.operands[0].shape
        out = []
        for at, size in enumerate(shape):
            grown = at < skip or (is_one(old[at - skip]) and not is_one(size))
            new = () if is_one(size) else (call.fresh(at, size, constant=True),)
            out.append(new if grown else label[at - skip])
        return (tuple(out),)

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        return torch.ops.aten.expand.default(call.operands[0].value, runner.shape(outs[0]))


@dataclass(frozen=True)
class Repeat(Layout):
    """Whole dimensions tiled: a repeated dimension counts (copy, old factors)."""

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, repeats = call.operands[0].label, list(call["repeats"])
        skip = len(repeats) - len(label)
        out = []
        for at, times in enumerate(repeats):
            copies = () if is_one(times) else (call.fresh(at, times, constant=True),)
            out.append(copies + (label[at - skip] if at >= skip else ()))
        return (tuple(out),)


@dataclass(frozen=True)
class Components(Rule):
    """Complex numbers from pairs in the last dimension, or (`split`) such pairs from numbers."""

    split: bool

    def infer(self, call: Call) -> tuple[Label, ...]:
        label = call.operands[0].label
        return ((*label, call.fresh_label()[-1]) if self.split else label[:-1],)

    def blocked(self, call: Call) -> list[Blocked]:
        operand = call.operands[0]
        return [] if self.split else block_dims(0, operand, [len(operand.label) - 1])


@dataclass(frozen=True)
class Concatenate(Rule):
    """Operands laid end to end along one dimension (cat) or along a new one (stack)."""

    kind: ClassVar[Kind] = "joining"
    new: bool

    def others(self, call: Call) -> tuple[int, list[Label]]:
        """The dimension, and the operands' labels without it."""
        rank = max(len(operand.label) for operand in call.operands)
        dim = call.dim(rank=rank + 1 if self.new else rank)
        labels = [operand.label for operand in call.operands]
        if not self.new:
            labels = [(*label[:dim], (), *label[dim + 1 :]) for label in labels]
        return dim, labels

    def alone(self, call: Call) -> Operand | None:
        """The only operand that is not empty, as with a cache's first fill."""
        filled = [o for o in call.operands if not any(is_zero(size) for size in o.shape)]
        return filled[0] if len(filled) == 1 and not self.new else None

    def infer(self, call: Call) -> tuple[Label, ...]:
        alone = self.alone(call)
        if alone is not None:
            return (alone.label,)
        dim, labels = self.others(call)
        joined = broadcast(labels, call.table)
        middle = call.fresh_label()[dim]
        return ((*joined[:dim], middle, *joined[dim + (not self.new) :]),)

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        if self.alone(call) is not None:
            return [operand.label for operand in call.operands]
        dim, labels = self.others(call)
        out = outs[0][:dim] + (() if self.new else ((),)) + outs[0][dim + 1 :]
        targets = broadcast_targets(labels, out)
        if self.new:
            return targets
        pairs = zip(call.operands, targets, strict=True)
        return [(*t[:dim], operand.label[dim], *t[dim + 1 :]) for operand, t in pairs]

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        alone = self.alone(call)
        if alone is None:
            return call.execute()
        return torch.ops.aten.cat.default([alone.value], call["dim"])

    def blocked(self, call: Call) -> list[Blocked]:
        if self.new or self.alone(call) is not None:
            return []
        dim, _ = self.others(call)
        return [b for at, o in enumerate(call.operands) for b in block_dims(at, o, [dim])]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        alone = self.alone(call)
        if alone is not None:
            return [joined if operand is alone else NOTHING for operand in call.operands]
        _, labels = self.others(call)
        return [joined if find_axis(label, axis) else joined.read_whole() for label in labels]
