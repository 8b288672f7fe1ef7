"""Rules of operators for which the place of a token matters: reads, parts, indices, orders."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from tokenpass.graph.axis import Axis, Label, find_axis, is_constant, same_size
from tokenpass.graph.call import Call, Runner
from tokenpass.graph.demand_lattice import (
    EVERYTHING,
    NOTHING,
    Demand,
    Extent,
    Position,
    read_at,
)
from tokenpass.graph.join import broadcast, broadcast_targets, follow, join_dims
from tokenpass.graph.meaning import Meaning, Places, Tally, cut_like
from tokenpass.graph.rule import Blocked, Kind, Rule, block_dims, demand_along, join_demands


@dataclass(frozen=True)
class Along(Rule):
    """Entries along one dimension depend on their place (cumsum, sort, roll, pad, triangles).

    `fresh`: the dimension counts something new afterwards, the same in all outputs; `dims`
    computes the dimensions. `totals`: running totals, also of a tally.
    """

    kind: ClassVar[Kind] = "position-dependent"
    dims: Callable[[Call], list[int]]
    fresh: bool = True
    totals: bool = False

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, dims, new = call.operands[0].label, self.dims(call), call.fresh_label()
        place = [at in dims and (self.fresh or is_constant(label[at])) for at in range(len(label))]
        out = tuple(new[at] if place[at] else dim for at, dim in enumerate(label))
        return tuple(out for _ in call.out_shapes)

    def meanings(self, call: Call) -> tuple[Meaning | None, ...]:
        known = call.operands[0].meaning
        if self.totals and isinstance(known, Tally) and not known.ends:
            return (replace(known, ends=True),)
        return super().meanings(call)

    def minds_rows(self, call: Call) -> bool:
        return self.meanings(call)[0] is not None

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
            start = max(0, start + size)
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
        unread = joined.extent is Extent.NONE or not positions
        return [NOTHING if unread else read_at(*positions)]

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
        whole = self.keep and self.one_each(call, dim)
        outs = []
        for output in range(len(call.out_shapes)):
            new = label[dim][1:] if whole or not self.keep else call.fresh_label(output)[dim]
            outs.append((*label[:dim], *((new,) if self.keep else ()), *label[dim + 1 :]))
        return tuple(outs)

    def one_each(self, call: Call, dim: int) -> bool:
        """Whether every part is one entry of the dimension's first factor, with all of the rest."""
        first, *rest = call.operands[0].label[dim] or (None,)
        pieces = [shape[dim] for shape in call.out_shapes]
        if first is None or not rest or first.cut is not None:
            return False
        whole = call.operands[0].shape[dim]
        equal = all(same_size(piece * len(pieces), whole) for piece in pieces)
        return equal and same_size(first.size, len(pieces))

    def blocked(self, call: Call) -> list[Blocked]:
        return block_dims(0, call.operands[0], [call.dim()])

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        place = find_axis(call.operands[0].label, axis)
        joined = join_demands(out)
        mixed = place is None or place[0] == call.dim()
        return [joined.read_whole() if mixed else joined]


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

    def rows(self, call: Call) -> Places | None:
        """The rows that a single index numbers, if they are those of the indexed dimension."""
        if not self.regular(call) or len(self.indexed(call)) != 1:
            return None
        (dim,) = self.indexed(call)
        operand, meaning = call.operands[0], call["indices"][dim].meaning
        known = isinstance(meaning, Places) and operand.meaning is None
        if not known or len(operand.label[dim]) != len(meaning.into):
            return None
        pairs = zip(operand.label[dim], meaning.into, strict=True)
        return meaning if all(same_size(f.axis.size, g.axis.size) for f, g in pairs) else None

    def infer(self, call: Call) -> tuple[Label, ...]:
        if not self.regular(call):
            return (call.fresh_label(),)
        dims, label, rows = self.indexed(call), call.operands[0].label, self.rows(call)
        if rows is not None:  # what is read by one order meets entry by entry
            join_dims([rows.into, label[dims[0]]], call.table)
        middle = broadcast([call["indices"][at].label for at in dims], call.table)
        start = self.start(call)
        rest = [dim for at, dim in enumerate(label) if at not in dims]
        return ((*rest[:start], *middle, *rest[start:]),)

    def start(self, call: Call) -> int:
        """Where the indices' dimensions stand in the output."""
        dims = self.indexed(call)
        return dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        if not self.regular(call):
            return super().targets(call, outs)
        dims, rows, first = self.indexed(call), self.rows(call), call.operands[0]
        indices = [call["indices"][at] for at in dims]
        middle = outs[0][self.start(call) :][: self.middle_rank(call)]
        target = list(first.label)
        if rows is not None:
            target[dims[0]] = cut_like(rows, indices[0].label)
        return [tuple(target), *broadcast_targets([i.label for i in indices], middle)]

    def blocked(self, call: Call) -> list[Blocked]:
        # an index that was itself shortened keeps its meaning; the indexed dimensions do not
        operands = call.operands
        if self.regular(call):
            if self.rows(call) is not None and call.node in call.table.row_wise:
                return []
            return block_dims(0, operands[0], self.indexed(call))
        return [b for at, o in enumerate(operands) for b in block_dims(at, o, range(len(o.label)))]

    def minds_rows(self, call: Call) -> bool:
        return self.rows(call) is not None

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        if joined.extent is Extent.NONE or not self.regular(call):
            return [joined.read_whole() for _ in call.operands]
        demands = demand_along(call, axis, joined, self.infer(call)[0], self.stands_at(call))
        place = find_axis(call.operands[0].label, axis)
        if place is not None and place[0] in self.indexed(call):
            demands[0] = self.read_by(call, place[0]) or EVERYTHING
        return demands

    def stands_at(self, call: Call) -> list[list[int | None]]:
        """Where the output has the dimensions of every operand; None where it is indexed."""
        dims, start, rank = self.indexed(call), self.start(call), self.middle_rank(call)
        kept = (at if at < start else at + rank for at in itertools.count())
        first = [None if at in dims else next(kept) for at in range(len(call.operands[0].label))]
        ranks = [len(call["indices"][at].label) for at in dims]
        return [first, *([*range(start + rank - own, start + rank)] for own in ranks)]

    def middle_rank(self, call: Call) -> int:
        """How many dimensions the joined indices have."""
        return max(len(call["indices"][at].label) for at in self.indexed(call))

    def read_by(self, call: Call, dim: int) -> Demand | None:
        """Demand at the index's node, if it holds one position for each sample in order."""
        dims, nodes = self.indexed(call), list(call.node.args[1])  # type: ignore[arg-type]
        if dim not in dims or not self.regular(call):
            return None
        node, others = nodes[dim], [nodes[at] for at in dims if at != dim]
        one_each = len(call["indices"][dim].label) == 1 and len(others) == 1
        if not one_each or not is_range(others[0]) or not isinstance(node, torch.fx.Node):
            return None
        (samples,) = (at for at in dims if at != dim)
        whole = call.operands[0].label[samples]
        if len(whole) > 1 or not same_size(call.out_shapes[0][0], call.operands[0].shape[samples]):
            return None
        return read_at(node, rows=whole[0].axis.root if whole else None)

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
    """`out[i][j] = x[i][index[i][j]]` along one dimension; the others meet entry by entry.

    `writes`: `scatter`, `x[i][index[i][j]] = source[i][j]`: other entries of `x` stay.
    """

    kind: ClassVar[Kind] = "joining"
    writes: bool = False

    def shared(self, call: Call) -> list[int]:
        """The other dimensions, where all operands have the same size."""
        first, *others = call.operands
        return [
            at
            for at in range(len(first.label))
            if at != call.dim() and all(same_size(o.shape[at], first.shape[at]) for o in others)
        ]

    def infer(self, call: Call) -> tuple[Label, ...]:
        operands, new, shared = call.operands, call.fresh_label(), self.shared(call)
        source = operands[0] if self.writes else operands[1]
        out = []
        for at, dim in enumerate(source.label):
            if at in shared:
                dim = join_dims([o.label[at] for o in operands], call.table)
            elif is_constant(dim) and (self.writes or at != call.dim()):
                dim = new[at]  # equal entries of one operand meet different ones of another
            out.append(dim)
        return (tuple(out),)

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        shared = self.shared(call)
        return [
            tuple(
                follow(dim, outs[0][at]) if at in shared and dim else dim
                for at, dim in enumerate(operand.label)
            )
            for operand in call.operands
        ]

    def blocked(self, call: Call) -> list[Blocked]:
        shared = self.shared(call)
        keep = {call.dim()} if not self.writes else set()
        return [
            b
            for index, operand in enumerate(call.operands)
            for b in block_dims(
                index,
                operand,
                [
                    at
                    for at in range(len(operand.label))
                    if at not in shared and not (index == 1 and at in keep)
                ],
            )
        ]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        shared = {*self.shared(call)}
        picks = set() if self.writes else {call.dim()}
        places = [
            [at if at in (shared | picks if index == 1 else shared) else None for at in range(rank)]
            for index, rank in enumerate(len(operand.label) for operand in call.operands)
        ]
        return demand_along(call, axis, join_demands(out), self.infer(call)[0], places)

    def query_operands(self, call: Call) -> list[int]:
        shared = self.shared(call)
        return [
            index
            for index, operand in enumerate(call.operands)
            if any(operand.label[at] for at in shared)
        ]
