"""Rules of operators that mix tokens: products, softmax, reductions, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from tokenpass.graph.axis import Axis, Factor, Label, deeper, find_axis
from tokenpass.graph.call import Call, Operand, Runner, is_one, is_zero
from tokenpass.graph.demand_lattice import (
    Demand,
    Extent,
)
from tokenpass.graph.join import (
    broadcast,
    broadcast_targets,
    join_dims,
)
from tokenpass.graph.rule import (
    Blocked,
    Kind,
    Rule,
    block_dims,
    cut_places,
    join_demands,
    summed_places,
)


def spread(given: Any, count: int) -> list[Any]:
    """A convolution's argument for each dimension; a named padding adds nothing to one entry."""
    if isinstance(given, str):
        return [0] * count
    return list(given) * count if len(given) == 1 else list(given)


@dataclass(frozen=True)
class Convolve(Rule):
    """Convolutions keep the batch, and places that they look at one by one; channels are new."""

    kind: ClassVar[Kind] = "position-dependent"

    def batch(self, call: Call) -> Label:
        """The batch dimension, which an input may lack."""
        source, weight = call.operands[:2]
        return source.label[:1] if len(source.label) == len(weight.label) else ()

    def apart(self, call: Call) -> list[int]:
        """Dimensions along which a window has one entry, and stands at every place."""
        first = len(self.batch(call)) + 1
        sizes = call.operands[1].shape[2:]
        stride, padding = (spread(call[name], len(sizes)) for name in ("stride", "padding"))
        return [
            first + at
            for at, size in enumerate(sizes)
            if is_one(size) and is_one(stride[at]) and is_zero(padding[at])
        ]

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, kept = list(call.fresh_label()), self.apart(call)
        source = call.operands[0].label
        start = len(self.batch(call))
        same = [*range(start), *kept]
        return (tuple(source[at] if at in same else dim for at, dim in enumerate(label)),)

    def blocked(self, call: Call) -> list[Blocked]:
        start, kept = len(self.batch(call)), self.apart(call)
        dims = [at for at in range(start, len(call.operands[0].label)) if at not in kept]
        found = block_dims(0, call.operands[0], dims)
        for at, operand in enumerate(call.operands[1:], start=1):
            found += block_dims(at, operand, range(len(operand.label)))
        return found

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined, place = join_demands(out), find_axis(call.operands[0].label, axis)
        same = [*range(len(self.batch(call))), *self.apart(call)]
        first = joined if place and place[0] in same else joined.read_whole()
        return [first, *(joined.read_whole() for _ in call.operands[1:])]


@dataclass(frozen=True)
class Contract(Rule):
    """`y[.., m, n] = sum_k a[.., m, k] b[.., k, n]`; `first` is the operand index of `a`.

    Law over a shortened k: probabilities (extensive) sum as they are, other products are weighted
    by the sizes. With `first=1`, operand 0 is added and broadcast.
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
        out = (*batch, *rows, *columns)
        return (broadcast([out, call.operands[0].label], call.table) if self.first else out,)

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        left, right = (operand.label for operand in self.sides(call))
        inner = join_dims([left[-1], inner_dim(right)], call.table)
        tail = (len(left) > 1) + (len(right) > 1)
        batch = outs[0][: len(outs[0]) - tail]
        left_batch, right_batch = broadcast_targets([left[:-2], right[:-2]], batch)
        rows = outs[0][len(batch) : len(batch) + 1] if len(left) > 1 else ()
        columns = outs[0][len(outs[0]) - 1 :] if len(right) > 1 else ()
        targets = [operand.label for operand in call.operands]
        targets[: self.first] = broadcast_targets(targets[: self.first], outs[0])
        targets[self.first] = (*left_batch, *rows, recut(left[len(left) - 1], inner))
        targets[self.first + 1] = (*right_batch, recut(inner_dim(right), inner), *columns)
        return targets

    def summed(self, call: Call) -> list[Blocked]:
        left, right = self.sides(call)
        places = block_dims(self.first, left, [len(left.label) - 1])
        inner = max(0, len(right.label) - 2)
        return places + block_dims(self.first + 1, right, [inner])

    def keeps_sums(self, call: Call) -> bool:
        left, right = self.sides(call)
        both = summed_places(left.label[-1:]) and summed_places((inner_dim(right.label),))
        biased = self.first > 0 and summed_places((*left.label[:-1], *right.label[-1:]))
        return not (both or biased)

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        left, right = self.sides(call)
        place = -2 if len(right.label) > 1 else -1
        # where an inner factor is cut, `infer` has checked that both sides list the same ones
        pairs = zip(left.label[-1], inner_dim(right.label), strict=False)
        for entry, (factor, other) in enumerate(pairs):
            cut: Any = factor.cut
            if cut is None or cut.sizes is None or factor.extensive or other.extensive:
                continue
            at = (place % len(right.label), entry)
            weighted = cut.weight(right.value, right.label, at, runner.shape)
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
        for at, operand in enumerate(call.operands[: self.first]):
            place = find_axis(operand.label, axis)
            if place and place[0] - len(operand.label) == (-2 if rows else -1):
                demands[at] = joined
        return demands


def inner_dim(label: Label) -> tuple[Factor, ...]:
    """The contracted dimension of the right matrix."""
    return label[max(0, len(label) - 2)]


def recut(dim: tuple[Factor, ...], goal: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """The dimension cut as deep as the goal, keeping what it is."""
    if len(dim) != len(goal):
        return dim
    pairs = zip(dim, goal, strict=True)
    return tuple(replace(f, cut=deeper(f.cut, g.cut)) for f, g in pairs)


@dataclass(frozen=True)
class Softmax(Rule):
    """`exp(x_j) / sum_k exp(x_k)`. Law: a merged entry adds its log size, and is then extensive."""

    kind: ClassVar[Kind] = "reducing"

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, dim = list(call.operands[0].label), call.dim()
        label[dim] = tuple(replace(f, extensive=f.cut is not None) for f in label[dim])
        return (tuple(label),)

    def summed(self, call: Call) -> list[Blocked]:
        return block_dims(0, call.operands[0], [call.dim()])

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        operand, dim = call.operands[0], call.dim()
        value = operand.value
        for place, factor in enumerate(operand.label[dim]):
            if factor.cut is not None and factor.cut.sizes is not None:
                at = (dim, place)
                value = factor.cut.add_log_sizes(value, operand.label, at, runner.shape)
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

    def summed(self, call: Call) -> list[Blocked]:
        return block_dims(0, call.operands[0], self.dims(call))

    def blocked(self, call: Call) -> list[Blocked]:
        operand = call.operands[0]
        places = cut_places(operand, self.dims(call))
        cuts = ((place, operand.label[place[0]][place[1]].cut) for place in places)
        lawful = self.law != "none"
        return [(0, place) for place, cut in cuts if not lawful or cut.sizes is None]

    def keeps_sums(self, call: Call) -> bool:
        return self.law in ("mean", "sum")

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        operand = call.operands[0]
        places = cut_places(operand, self.dims(call))
        if not places or self.law == "max":
            return call.execute()
        value, share = operand.value, []
        for dim, place in places:
            factor = operand.label[dim][place]
            if not factor.extensive:
                value = factor.cut.weight(value, operand.label, (dim, place), runner.shape)
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
