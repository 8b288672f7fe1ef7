"""Rules of operators that treat tokens apart: elementwise, projections, norms, factories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tokenpass.graph.axis import Axis, Dim, Label, find_axis, is_constant
from tokenpass.graph.call import Call, Runner, is_one
from tokenpass.graph.demand_lattice import (
    NOTHING,
    Demand,
)
from tokenpass.graph.join import (
    broadcast,
    broadcast_targets,
    follow,
    offer,
)
from tokenpass.graph.meaning import Meaning
from tokenpass.graph.rule import Blocked, Kind, Rule, block_dims, join_demands, summed_places


@dataclass(frozen=True)
class Pointwise(Rule):
    """`f(x, y)[i] = f(x[i], y[i])`, operands broadcast; `linear`: in the first operand.

    `copies`: a copy, maybe of another dtype.
    """

    kind: ClassVar[Kind] = "joining"
    linear: bool = False
    copies: bool = False

    def meanings(self, call: Call) -> tuple[Meaning | None, ...]:
        return (call.operands[0].meaning if self.copies else None,)

    def minds_rows(self, call: Call) -> bool:
        return self.copies

    def infer(self, call: Call) -> tuple[Label, ...]:
        labels = [operand.label for operand in call.operands]
        joined = broadcast(labels, call.table, self.linear)
        back = len(joined)
        return (tuple(self.counted(call, at - back, dim) for at, dim in enumerate(joined)),)

    def counted(self, call: Call, at: int, dim: Dim) -> Dim:
        """A dimension of several factors that meets a single constant one counts anew.

        As where it meets one that varies: the coarser list wins, but a constant one is no axis.
        """
        if len(dim) < 2 or any(factor.cut is not None for factor in dim):
            return dim
        met = [o.label[at] for o in call.operands if len(o.label) >= -at]
        coarser = [other[0] for other in met if len(other) == 1]
        return (call.fresh(("counted", at), coarser[0].axis.size),) if coarser else dim

    def keeps_sums(self, call: Call) -> bool:
        return self.linear and not any(summed_places(o.label) for o in call.operands[1:])

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        return broadcast_targets([operand.label for operand in call.operands], outs[0])


@dataclass(frozen=True)
class Detach(Pointwise):
    """`detach_`, on a value that may have become a view, which it refuses."""

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        return call.operands[0].value.detach()


@dataclass(frozen=True)
class Like(Rule):
    """The output has the first operand's tokens; other operands only lend dtype or device."""

    def infer(self, call: Call) -> tuple[Label, ...]:
        return (call.operands[0].label,)

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        return [join_demands(out), *(NOTHING for _ in call.operands[1:])]


@dataclass(frozen=True)
class Fill(Like):
    """Like the first operand in shape: nothing of its values enters."""

    def minds_rows(self, call: Call) -> bool:
        return True

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        return [NOTHING for _ in call.operands]


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
        first, *weights = call.operands
        found = block_dims(0, first, [len(first.label) - 1])
        for at, operand in enumerate(weights, start=1):
            found += block_dims(at, operand, range(len(operand.label)))
        return found

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        rows = find_axis(call.operands[0].label[:-1], axis)
        first = joined if rows else joined.read_whole()
        return [first, *(joined.read_whole() for _ in call.operands[1:])]


@dataclass(frozen=True)
class Normalise(Rule):
    """Statistics over some dimensions (`dims` computes them): tokens apart unless listed there."""

    dims: Callable[[Call], list[int]]

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, dims = call.operands[0].label, self.dims(call)
        statistics = tuple(() if at in dims else dim for at, dim in enumerate(label))
        new = call.fresh_label()  # weights may differ where the values do not
        out = tuple(
            new[at] if at in dims and is_constant(dim) else dim for at, dim in enumerate(label)
        )
        return (out, *(statistics for _ in call.out_shapes[1:]))

    def blocked(self, call: Call) -> list[Blocked]:
        found = block_dims(0, call.operands[0], self.dims(call))
        for at, operand in enumerate(call.operands[1:], start=1):
            found += block_dims(at, operand, range(len(operand.label)))
        return found

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        return [outs[0], *(operand.label for operand in call.operands[1:])]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined = join_demands(out)
        place = find_axis(call.operands[0].label, axis)
        mixed = place is None or place[0] in self.dims(call)
        first = joined.read_whole() if mixed else joined
        return [first, *(joined.read_whole() for _ in call.operands[1:])]


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
