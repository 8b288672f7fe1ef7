"""How much of a token axis is needed: none < the positions it is read at < weighted < all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

from tokenpass.graph.axis import Axis


class Extent(IntEnum):
    """Rank in the lattice."""

    NONE = 0
    AT = 1
    WEIGHTED = 2
    ALL = 3


@dataclass(frozen=True)
class Position:
    """One place on the token axis: a constant (from the end if negative) or a graph node.

    A node holds one place for each entry of the axis `rows` (None: for a single sample).
    """

    at: int | torch.fx.Node
    rows: Axis | None = None

    def __str__(self) -> str:
        return self.at.name if isinstance(self.at, torch.fx.Node) else str(self.at)


@dataclass(frozen=True)
class Demand:
    """Extent, with the positions that some consumer reads alone (kept at every extent)."""

    extent: Extent
    positions: frozenset[Position] = frozenset()

    def __or__(self, other: Demand) -> Demand:
        return Demand(max(self.extent, other.extent), self.positions | other.positions)

    def read_whole(self, extent: Extent = Extent.ALL) -> Demand:
        """Demand on an operand all of whose tokens make the (demanded) output."""
        return NOTHING if self.extent is Extent.NONE else Demand(extent)


NOTHING = Demand(Extent.NONE)
EVERYTHING = Demand(Extent.ALL)


def read_at(*positions: int | torch.fx.Node, rows: Axis | None = None) -> Demand:
    """Demand for some positions only."""
    return Demand(Extent.AT, frozenset(Position(p, rows) for p in positions))
