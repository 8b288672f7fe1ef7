"""What a token-axis rule is, and the helpers that rules share.

Each rule states a claim. Equivariant and joining: operating then selecting tokens equals selecting
tokens then operating. Reducing: exact duplicates merged, with their sizes, give what all tokens
give. Position-dependent rules name the factors that must be at full length first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from tokenpass.graph.axis import Axis, Label, find_axis, find_places
from tokenpass.graph.call import Call, Operand, Runner
from tokenpass.graph.demand_lattice import NOTHING, Demand
from tokenpass.graph.meaning import Meaning

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

    def summed(self, call: Call) -> list[Blocked]:
        """Shortened factors over which the outputs mix tokens."""
        return []

    def meanings(self, call: Call) -> tuple[Meaning | None, ...]:
        """What the integers of the outputs say about rows."""
        return tuple(None for _ in call.out_shapes)

    def minds_rows(self, call: Call) -> bool:
        """Whether numbers of rows and tallies among the operands are used as what they are."""
        return False

    def keeps_sums(self, call: Call) -> bool:
        """Whether sums over merged tokens stay such sums: `f(s x) = s f(x)` along what is kept."""
        return False

    def restored_first(self, call: Call) -> list[Blocked]:
        """All factors that must be at full length before the call."""
        if self.keeps_sums(call):
            return self.blocked(call)
        sums = [(i, at) for i, o in enumerate(call.operands) for at in summed_places(o.label)]
        return [*self.blocked(call), *sums]

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        """Run the operator on operands that meet `targets`."""
        return call.execute()

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        """Demand on each operand's tokens, from the demand on the outputs'.

        It speaks of the first dimension with the axis: of scores and masks, which hold it twice, of
        the rows, and so not of an operand that holds the columns alone.
        """
        joined, out_label = join_demands(out), self.infer(call)[0]
        rows = find_places(out_label, axis)
        return [
            joined if speaks_of(operand.label, axis, out_label, rows) else joined.read_whole()
            for operand in call.operands
        ]


def speaks_of(label: Label, axis: Axis, out: Label, rows: list[Place]) -> bool:
    """Whether an operand's first dimension with an axis meets the first one of the output."""
    places = find_places(label, axis)
    if len(places) == len(rows) or len(rows) < 2 or not places:
        return bool(places)
    return places[0][0] - len(label) == rows[0][0] - len(out)


def demand_along(
    call: Call,
    axis: Axis,
    joined: Demand,
    out: Label,
    places: Sequence[Sequence[int | None]],
) -> list[Demand]:
    """Demand on operands whose dimension `d` is the output's `places[operand][d]`.

    None: entries along it are chosen by other operands, and all of them may be.
    """
    rows, demands = find_axis(out, axis), []
    for operand, stands_at in zip(call.operands, places, strict=True):
        place = find_axis(operand.label, axis)
        meets = rows is not None and place is not None and stands_at[place[0]] == rows[0]
        demands.append(joined if meets else joined.read_whole())
    return demands


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


def summed_places(label: Label) -> list[Place]:
    """Places of factors along which merged tokens hold the sum over their members."""
    return [
        (at, place)
        for at, dim in enumerate(label)
        for place, factor in enumerate(dim)
        if factor.extensive and factor.cut is not None and factor.cut.sizes is not None
    ]


def block_dims(index: int, operand: Operand, dims: Sequence[int]) -> list[Blocked]:
    """Blocked entries for some dimensions of one operand."""
    return [(index, place) for place in cut_places(operand, dims)]
