"""The kinds of token-axis rules: what a class of operators does to labels, demand and cuts.

Each rule states a claim. Equivariant and joining: operating then selecting tokens equals selecting
tokens then operating. Reducing: exact duplicates merged, with their sizes, give what all tokens
give. Position-dependent rules name the factors that must be at full length first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from tokenpass.graph.axis import Axis, Factor, Label, Unalignable, deeper, find_axis
from tokenpass.graph.call import Call, Operand, Runner, is_one, is_zero
from tokenpass.graph.demand_lattice import (
    EVERYTHING,
    NOTHING,
    Demand,
    Extent,
    Position,
    read_at,
)
from tokenpass.graph.join import (
    Irregular,
    broadcast,
    broadcast_targets,
    follow,
    join_dims,
    offer,
    regroup,
)

Kind = Literal["equivariant", "reducing", "position-dependent", "joining", "factory"]
Place = tuple[int, int]
Blocked = tuple[int, Place]


class Rule(ABC):
    """What one operator does to the token axis."""

    kind: ClassVar[Kind] = "equivariant"

    @abstractmethod
    def infer(self, call: Call) -> tuple[Label, ...]:
        """The labels of the outputs, cuts included."""

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        """The labels that the operands must have, so that the call gives `outs`."""
        return [operand.label for operand in call.operands]

    def blocked(self, call: Call) -> list[Blocked]:
        """Factors (operand, place) that must be at full length before the call."""
        return []

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        """Run the operator on operands that meet `targets`."""
        return call.execute()

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        """Demand on each operand's tokens, from the demand on the outputs'."""
        joined = join_demands(out)
        return [
            joined if find_axis(operand.label, axis) else joined.read_whole()
            for operand in call.operands
        ]

    def query_operands(self, call: Call) -> list[int]:
        """Operands whose token axis is the output's (all, unless the rule mixes tokens)."""
        return list(range(len(call.operands)))


def join_demands(demands: Sequence[Demand]) -> Demand:
    """What several consumers need together."""
    out = NOTHING
    for demand in demands:
        out = out | demand
    return out


def cut_places(operand: Operand, dims: Sequence[int]) -> list[Place]:
    """Places of shortened factors in some dimensions of an operand."""
    return [
        (dim, place)
        for dim in dims
        for place, factor in enumerate(operand.label[dim])
        if factor.cut is not None
    ]


def block_dims(index: int, operand: Operand, dims: Sequence[int]) -> list[Blocked]:
    """Blocked entries for some dimensions of one operand."""
    return [(index, place) for place in cut_places(operand, dims)]


@dataclass(frozen=True)
class Pointwise(Rule):
    """`f(x, y)[i] = f(x[i], y[i])`, operands broadcast; `linear` ones keep sums over members."""

    kind: ClassVar[Kind] = "joining"
    linear: bool = False

    def infer(self, call: Call) -> tuple[Label, ...]:
        labels = [operand.label for operand in call.operands]
        if not self.linear and any(f.extensive for l in labels for d in l for f in d):
            raise Unalignable("sums over merged tokens meet an operator that is not linear")
        return (broadcast(labels, call.table, self.linear),)

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        return broadcast_targets([operand.label for operand in call.operands], outs[0])


@dataclass(frozen=True)
class Like(Rule):
    """The output has the first operand's tokens; other operands only lend dtype or device."""

    def infer(self, call: Call) -> tuple[Label, ...]:
        return (call.operands[0].label,)


@dataclass(frozen=True)
class Factory(Rule):
    """New values of a given shape: nothing of an operand's tokens enters.

    `ordered`: the entries differ along the axis (a range); otherwise all are equal.
    """

    kind: ClassVar[Kind] = "factory"
    ordered: bool = False

    def infer(self, call: Call) -> tuple[Label, ...]:
        shape = call.out_shapes[0]
        constant = not self.ordered
        return (
            tuple(
                () if is_one(size) else (call.fresh(at, size, constant),)
                for at, size in enumerate(shape)
            ),
        )

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        return [NOTHING for _ in call.operands]


@dataclass(frozen=True)
class Reshape(Rule):
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
class Permute(Rule):
    """Dimensions in another order; `order` computes it from the call."""

    order: Callable[[Call], list[int]]

    def infer(self, call: Call) -> tuple[Label, ...]:
        label = call.operands[0].label
        return (tuple(label[at] for at in self.order(call)),)


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
class Expand(Rule):
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
class Repeat(Rule):
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
class Project(Rule):
    """`y[.., o] = sum_i x[.., i] w[o, i]`: every token apart, the last dimension is new."""

    def infer(self, call: Call) -> tuple[Label, ...]:
        size = call.out_shapes[0][-1]
        last = () if is_one(size) else (call.fresh("out", size),)
        return ((*call.operands[0].label[:-1], last),)

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        first, *others = call.operands
        dims = zip(first.label[:-1], outs[0][:-1], strict=True)
        target = (*(follow(old, new) if old else offer(new) for old, new in dims), first.label[-1])
        return [target, *(operand.label for operand in others)]

    def blocked(self, call: Call) -> list[Blocked]:
        return block_dims(0, call.operands[0], [-1 % len(call.operands[0].label)])

    def query_operands(self, call: Call) -> list[int]:
        return [0]


@dataclass(frozen=True)
class Convolve(Rule):
    """Convolutions keep the batch alone; channels and places are new."""

    kind: ClassVar[Kind] = "position-dependent"

    def infer(self, call: Call) -> tuple[Label, ...]:
        return ((call.operands[0].label[0], *call.fresh_label()[1:]),)

    def blocked(self, call: Call) -> list[Blocked]:
        return block_dims(0, call.operands[0], range(1, len(call.operands[0].label)))

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        return [join_demands(out).read_whole() for _ in call.operands]


@dataclass(frozen=True)
class Contract(Rule):
    """`y[.., m, n] = sum_k a[.., m, k] b[.., k, n]`; `first` is the operand index of `a`.

    Law over a shortened k: probabilities (extensive) sum as they are, other products are weighted
    by the sizes.
    """

    kind: ClassVar[Kind] = "reducing"
    first: int = 0

    def sides(self, call: Call) -> tuple[Operand, Operand]:
        """The two matrices."""
        return call.operands[self.first], call.operands[self.first + 1]

    def infer(self, call: Call) -> tuple[Label, ...]:
        left, right = (operand.label for operand in self.sides(call))
        join_dims([left[-1], inner_dim(right)], call.table)
        batch = broadcast([left[:-2], right[:-2]], call.table)
        rows = left[-2:-1] if len(left) > 1 else ()
        columns = right[-1:] if len(right) > 1 else ()
        return ((*batch, *rows, *columns),)

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        left, right = (operand.label for operand in self.sides(call))
        inner = join_dims([left[-1], inner_dim(right)], call.table)
        tail = (len(left) > 1) + (len(right) > 1)
        batch = outs[0][: len(outs[0]) - tail]
        left_batch, right_batch = broadcast_targets([left[:-2], right[:-2]], batch)
        rows = (outs[0][len(batch)],) if len(left) > 1 else ()
        columns = (outs[0][-1],) if len(right) > 1 else ()
        targets = [operand.label for operand in call.operands]
        targets[self.first] = (*left_batch, *rows, recut(left[-1], inner))
        targets[self.first + 1] = (*right_batch, recut(inner_dim(right), inner), *columns)
        return targets

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        left, right = self.sides(call)
        place = -2 if len(right.label) > 1 else -1
        # where an inner factor is cut, `infer` has checked that both sides list the same ones
        for factor, other in zip(left.label[-1], inner_dim(right.label), strict=False):
            sizes = None if factor.cut is None else factor.cut.sizes
            if sizes is None or factor.extensive or other.extensive:
                continue
            weighted = factor.cut.weight(right.value, right.label, place)
            changed = [replace(o, value=weighted) if o is right else o for o in call.operands]
            call = call.with_operands(changed)
        return call.execute()

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        left, right = self.sides(call)
        rows = find_axis(left.label[:-1], axis)
        demands = [joined.read_whole() for _ in call.operands]
        if rows is not None:
            demands[self.first] = joined
        elif find_axis(right.label[:-2], axis):
            demands[self.first + 1] = joined
        columns = find_axis(right.label[-1:], axis)
        if rows is None and columns is not None and len(right.label) > 1:
            demands[self.first + 1] = joined
        return demands

    def query_operands(self, call: Call) -> list[int]:
        return [self.first]


def inner_dim(label: Label) -> tuple[Factor, ...]:
    """The contracted dimension of the right matrix."""
    return label[-2] if len(label) > 1 else label[-1]


def recut(dim: tuple[Factor, ...], goal: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """The dimension cut as deep as the goal, keeping what it is."""
    if len(dim) != len(goal):
        return dim
    pairs = zip(dim, goal, strict=True)
    return tuple(replace(f, cut=deeper(f.cut, g.cut)) for f, g in pairs)


@dataclass(frozen=True)
class Normalise(Rule):
    """Statistics over some dimensions (`dims` computes them): tokens apart unless listed there."""

    dims: Callable[[Call], list[int]]

    def infer(self, call: Call) -> tuple[Label, ...]:
        label = call.operands[0].label
        return (label, *(() for _ in call.out_shapes[1:]))

    def blocked(self, call: Call) -> list[Blocked]:
        return block_dims(0, call.operands[0], self.dims(call))

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        return [outs[0], *(operand.label for operand in call.operands[1:])]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        place = find_axis(call.operands[0].label, axis)
        mixed = place is None or place[0] in self.dims(call)
        first = joined.read_whole() if mixed else joined
        return [first, *(joined.read_whole() for _ in call.operands[1:])]

    def query_operands(self, call: Call) -> list[int]:
        return [0]


@dataclass(frozen=True)
class Softmax(Rule):
    """`exp(x_j) / sum_k exp(x_k)`. Law: a merged entry adds its log size, and is then extensive."""

    kind: ClassVar[Kind] = "reducing"

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, dim = list(call.operands[0].label), call.dim()
        label[dim] = tuple(replace(f, extensive=True) for f in label[dim])
        return (tuple(label),)

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        operand, dim = call.operands[0], call.dim()
        value = operand.value
        for factor in operand.label[dim]:
            if factor.cut is not None and factor.cut.sizes is not None:
                value = factor.cut.add_log_sizes(value, operand.label, dim)
        return call.with_operands([replace(operand, value=value)]).execute()

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        dim = call.dim()
        kept = tuple(replace(f, extensive=False) for f in outs[0][dim])
        return [(*outs[0][:dim], kept, *outs[0][dim + 1 :])]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        place = find_axis(call.operands[0].label, axis)
        joined = join_demands(out)
        return [joined.read_whole() if place is None or place[0] == call.dim() else joined]


@dataclass(frozen=True)
class Reduce(Rule):
    """One value from all entries along some dimensions.

    Laws: `mean` and `sum` weigh by sizes, `max` takes merged entries as they are; `none` (variance,
    argmax, products, ...) needs the full length.
    """

    kind: ClassVar[Kind] = "reducing"
    law: Literal["mean", "sum", "max", "none"] = "none"

    def dims(self, call: Call) -> list[int]:
        """Reduced dimensions."""
        rank, dims = len(call.operands[0].label), call.get("dim")
        if dims is None or dims == []:
            return list(range(rank))
        return [d % rank for d in ([dims] if isinstance(dims, int) else dims)] if rank else []

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, dims = call.operands[0].label, self.dims(call)
        if call.get("keepdim", False):
            out = tuple(() if at in dims else dim for at, dim in enumerate(label))
        else:
            out = tuple(dim for at, dim in enumerate(label) if at not in dims)
        return tuple(out for _ in call.out_shapes)

    def blocked(self, call: Call) -> list[Blocked]:
        operand = call.operands[0]
        places = cut_places(operand, self.dims(call))
        cuts = ((place, operand.label[place[0]][place[1]].cut) for place in places)
        lawful = self.law != "none"
        return [(0, place) for place, cut in cuts if not lawful or cut.sizes is None]

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        operand = call.operands[0]
        places = cut_places(operand, self.dims(call))
        if not places or self.law == "max":
            return call.execute()
        value, share = operand.value, []
        for dim, place in places:
            factor = operand.label[dim][place]
            value = factor.cut.weight(value, operand.label, dim)
            share.append((factor.size, factor.axis.size))
        out = call.with_operands([replace(operand, value=value)]).execute()
        if self.law == "mean":
            for now, full in share:
                out = out * now / runner.shape(((Factor(Axis(full, "full")),),))[0]
        return out

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        place = find_axis(call.operands[0].label, axis)
        joined = join_demands(out)
        if place is not None and place[0] not in self.dims(call):
            return [joined]
        extent = Extent.WEIGHTED if self.law in ("mean", "sum") else Extent.ALL
        return [joined.read_whole(extent)]


@dataclass(frozen=True)
class Along(Rule):
    """Entries along one dimension depend on their place (cumsum, sort, roll, pad, triangles).

    `fresh`: the dimension counts something new afterwards; `dims` computes the dimensions.
    """

    kind: ClassVar[Kind] = "position-dependent"
    dims: Callable[[Call], list[int]]
    fresh: bool = True

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, dims = call.operands[0].label, self.dims(call)
        outs = []
        for output in range(len(call.out_shapes)):
            new = call.fresh_label(output)
            outs.append(
                tuple(
                    new[at] if self.fresh and at in dims else dim for at, dim in enumerate(label)
                )
            )
        return tuple(outs)

    def blocked(self, call: Call) -> list[Blocked]:
        return block_dims(0, call.operands[0], self.dims(call))

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        place = find_axis(call.operands[0].label, axis)
        joined = join_demands(out)
        mixed = place is None or place[0] in self.dims(call)
        first = joined.read_whole() if mixed else joined
        return [first, *(joined.read_whole() for _ in call.operands[1:])]


@dataclass(frozen=True)
class Read(Rule):
    """Entries read at fixed places of one dimension: select, slice. `keep`: the dimension stays."""

    kind: ClassVar[Kind] = "position-dependent"
    keep: bool

    most: ClassVar[int] = 64

    def whole(self, call: Call) -> bool:
        """Whether a slice takes everything."""
        size = call.operands[0].shape[call.dim()]
        out = call.out_shapes[0][call.dim()] if self.keep else None
        return self.keep and out is not None and str(out) == str(size)

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, dim = call.operands[0].label, call.dim()
        if self.whole(call):
            return (label,)
        if not self.keep:
            return ((*label[:dim], *label[dim + 1 :]),)
        return ((*label[:dim], call.fresh_label()[dim], *label[dim + 1 :]),)

    def positions(self, call: Call) -> list[int] | None:
        """The places read, if they are few and known; negative ones count from the end."""
        size = call.operands[0].shape[call.dim()]
        if not self.keep:
            start, count = call["index"], 1
        else:
            start, count = call.get("start") or 0, call.out_shapes[0][call.dim()]
        known = isinstance(start, int) and isinstance(count, int)
        if not known or count > self.most or call.get("step", 1) != 1:
            return None
        if start < 0 and isinstance(size, int):
            start += size
        return list(range(start, start + count))

    def blocked(self, call: Call) -> list[Blocked]:
        if self.whole(call):
            return []
        return block_dims(0, call.operands[0], [call.dim()])

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        return call.operands[0].value if self.whole(call) else call.execute()

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        place = find_axis(call.operands[0].label, axis)
        joined = join_demands(out)
        if place is not None and (place[0] != call.dim() or self.whole(call)):
            return [joined]
        positions = self.positions(call)
        if place is None or positions is None or len(call.operands[0].label[place[0]]) > 1:
            return [joined.read_whole()]
        return [NOTHING if joined.extent is Extent.NONE else read_at(*positions)]

    def read_positions(self, call: Call, dim: int) -> tuple[Position, ...] | None:
        """The positions that this call reads, for values that hold nothing else."""
        places = self.positions(call) if dim == call.dim() else None
        return None if places is None else tuple(Position(place) for place in places)

    def read_slots(self, call: Call, dim: int, slots: list[int]) -> Any:
        """The read on a value in which the positions stand at `slots`."""
        value = call.operands[0].value
        if not self.keep:
            return value.select(dim, slots[0])
        if slots == list(range(slots[0], slots[0] + len(slots))):
            return value.narrow(dim, slots[0], len(slots))
        return torch.stack([value.select(dim, slot) for slot in slots], dim)


@dataclass(frozen=True)
class Parts(Rule):
    """One dimension cut in parts (split, chunk) or taken apart (unbind: `keep` False)."""

    kind: ClassVar[Kind] = "position-dependent"
    keep: bool

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, dim = call.operands[0].label, call.dim()
        outs = []
        for output in range(len(call.out_shapes)):
            middle = (call.fresh_label(output)[dim],) if self.keep else ()
            outs.append((*label[:dim], *middle, *label[dim + 1 :]))
        return tuple(outs)

    def blocked(self, call: Call) -> list[Blocked]:
        return block_dims(0, call.operands[0], [call.dim()])

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        place = find_axis(call.operands[0].label, axis)
        joined = join_demands(out)
        mixed = place is None or place[0] == call.dim()
        return [joined.read_whole() if mixed else joined]


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

    def blocked(self, call: Call) -> list[Blocked]:
        if self.new or self.alone(call) is not None:
            return []
        dim, _ = self.others(call)
        return [b for at, o in enumerate(call.operands) for b in block_dims(at, o, [dim])]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        if self.alone(call) is not None:
            return [joined for _ in call.operands]
        _, labels = self.others(call)
        return [joined if find_axis(label, axis) else joined.read_whole() for label in labels]


@dataclass(frozen=True)
class Lookup(Rule):
    """Rows of a table by index: the output counts what the indices count."""

    kind: ClassVar[Kind] = "joining"

    def infer(self, call: Call) -> tuple[Label, ...]:
        table, indices = call.operands[:2]
        return ((*indices.label, *table.label[1:]),)

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        table, indices = call.operands[:2]
        return [table.label, outs[0][: len(indices.label)]]

    def blocked(self, call: Call) -> list[Blocked]:
        table = call.operands[0]
        return block_dims(0, table, range(len(table.label)))

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        indices = call.operands[1]
        carried = find_axis(indices.label, axis)
        return [joined.read_whole(), joined if carried else joined.read_whole()]

    def query_operands(self, call: Call) -> list[int]:
        return [1]


@dataclass(frozen=True)
class AdvancedIndex(Rule):
    """`x[i, j, :]` with index tensors: the indices' joined label stands for the indexed dims."""

    kind: ClassVar[Kind] = "position-dependent"

    def indexed(self, call: Call) -> list[int]:
        """Dimensions that an index tensor picks from (boolean masks are not followed)."""
        return [at for at, index in enumerate(call["indices"]) if index is not None]

    def regular(self, call: Call) -> bool:
        """Whether every index is an integer tensor for one dimension."""
        return not any(
            getattr(index.value, "dtype", None) in (torch.bool, torch.uint8)
            for index in call["indices"]
            if index is not None
        )

    def infer(self, call: Call) -> tuple[Label, ...]:
        if not self.regular(call):
            return (call.fresh_label(),)
        dims, label = self.indexed(call), call.operands[0].label
        middle = broadcast([call["indices"][at].label for at in dims], call.table)
        together = dims == list(range(dims[0], dims[-1] + 1))
        rest = [dim for at, dim in enumerate(label) if at not in dims]
        start = dims[0] if together else 0
        return ((*rest[:start], *middle, *rest[start:]),)

    def blocked(self, call: Call) -> list[Blocked]:
        # an index tensor that was itself shortened keeps its meaning; the indexed dims do not
        operand = call.operands[0]
        dims = self.indexed(call) if self.regular(call) else range(len(operand.label))
        found = block_dims(0, operand, list(dims))
        for at, other in enumerate(call.operands[1:], start=1):
            found += block_dims(at, other, range(len(other.label)))
        return found

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        others = [joined.read_whole() for _ in call.operands[1:]]
        place = find_axis(call.operands[0].label, axis)
        if joined.extent is Extent.NONE or place is None or not self.regular(call):
            return [joined.read_whole(), *others]
        if place[0] not in self.indexed(call):
            return [joined, *others]
        return [self.read_by(call, place[0]) or EVERYTHING, *others]

    def read_by(self, call: Call, dim: int) -> Demand | None:
        """Demand at the index's node, if it holds one position for each sample in order."""
        dims, nodes = self.indexed(call), list(call.node.args[1])  # type: ignore[arg-type]
        node, others = nodes[dim], [nodes[at] for at in dims if at != dim]
        one_each = len(call["indices"][dim].label) == 1 and len(others) == 1
        in_order = one_each and is_range(others[0])
        return read_at(node) if in_order and isinstance(node, torch.fx.Node) else None

    def read_positions(self, call: Call, dim: int) -> tuple[Position, ...] | None:
        """The position that this call reads in every sample."""
        demand = self.read_by(call, dim)
        return None if demand is None else tuple(demand.positions)

    def read_slots(self, call: Call, dim: int, slots: list[int]) -> Any:
        """The read on a value in which the position stands at a slot of its own."""
        return call.operands[0].value.select(dim, slots[0])


def is_range(node: Any) -> bool:
    """Whether an index is `arange` over the whole batch (seen through copies)."""
    while isinstance(node, torch.fx.Node) and node.target in RANGE_COPIES:
        node = node.args[0]
    return isinstance(node, torch.fx.Node) and node.target is torch.ops.aten.arange.default


RANGE_COPIES = frozenset(
    {
        torch.ops.aten.to.dtype,
        torch.ops.aten.to.dtype_layout,
        torch.ops.aten.to.device,
        torch.ops.aten.alias.default,
        torch.ops.aten.detach.default,
        torch.ops.aten.contiguous.default,
    }
)


@dataclass(frozen=True)
class Gather(Rule):
    """`out[i][j] = x[i][index[i][j]]` along one dimension."""

    kind: ClassVar[Kind] = "position-dependent"

    def infer(self, call: Call) -> tuple[Label, ...]:
        return (call.operands[1].label,)

    def blocked(self, call: Call) -> list[Blocked]:
        return [
            b for at, o in enumerate(call.operands) for b in block_dims(at, o, range(len(o.label)))
        ]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        return [joined.read_whole() for _ in call.operands]
