"""dead_tokens: where the outputs need only some positions, nothing else is computed for the others.

    before   q, MLP, norms of the last layer over [batch, n, width]
    after    the same over [batch, positions read, width]; keys and values still over n

Exact: sums are taken over the same terms. The positions come from demand, never from a constant.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import find_axis
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.demand_lattice import Extent, Position
from tokenpass.graph.sites import Stream
from tokenpass.graph.view import View
from tokenpass.passes.base import ExactPass, Found
from tokenpass.rewrite.read_cut import ReadCut

aten = torch.ops.aten
WORK = frozenset(
    {
        aten.linear.default,
        aten.matmul.default,
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
    }
)


class DeadTokens(ExactPass):
    """Positions that no output reads are dropped as soon as nothing else reads them."""

    name: ClassVar[str] = "dead_tokens"

    def read_cuts(self, view: View, first_owner: int) -> tuple[tuple[ReadCut, ...], Found]:
        cuts: list[ReadCut] = []
        rejections: list[Rejection] = []
        for stream in view.streams:
            cut = self.cut(view, stream, first_owner + len(cuts))
            if isinstance(cut, ReadCut):
                cuts.append(cut)
            elif cut is not None:
                rejections.append(cut)
        return tuple(cuts), Found((), tuple(rejections))

    def cut(self, view: View, stream: Stream, owner: int) -> ReadCut | Rejection | None:
        """The exact cut of one stream; a rejection or None where all tokens live."""
        nodes = read_apart(view, stream)
        if not any(node.target in WORK for node in nodes):
            return None
        positions: set[Position] = set()
        for node in nodes:
            positions |= stream.demand[node].positions
        ordered = tuple(sorted(positions, key=position_order))
        size = stream.axis.size
        if isinstance(size, int) and len(ordered) >= size:
            return None
        for position in ordered:
            if isinstance(position.at, Node) and depends_on_stream(view, stream, position.at):
                because = f"the position {position} is computed from the stream itself"
                return Rejection("index_from_stream", stream.birth.name, because)
        if any(node in view.written for node in nodes):
            return Rejection("mutated_alias", stream.birth.name, "a value is written to in place")
        return ReadCut(stream, ordered, frozenset(nodes), owner)


def position_order(position: Position) -> tuple[int, int, str]:
    """Constants from the start, then from the end, then computed ones."""
    if isinstance(position.at, Node):
        return (2, 0, position.at.name)
    return (0 if position.at >= 0 else 1, position.at, "")


def read_apart(view: View, stream: Stream) -> list[Node]:
    """Values of the stream (no side operands) of which only listed positions are needed."""
    inside = view.downstream(stream.birth)
    return [
        node
        for node, demand in stream.demand.items()
        if demand.extent is Extent.AT
        and node in inside
        and find_rule(node.target) is not None
        and find_axis(view.labels[node], stream.axis) is not None
    ]


def depends_on_stream(view: View, stream: Stream, node: Node) -> bool:
    """Whether a position is computed from the values that it would shorten."""
    return node in view.downstream(stream.birth) or node is stream.birth
