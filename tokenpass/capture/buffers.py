"""Buffers that slices fill, one beside the other, become concatenations.

    y = new_empty(..); copy_(y[.., :n], a); copy_(y[.., n:], b)   ->   y = cat([a, b], -1)

Allowed where the slices cover one dimension without gap or overlap, nobody reads the buffer or a
slice of it before the last copy, and what is copied has the slice's shape and is not written to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from tokenpass.graph.aliases import written_nodes
from tokenpass.graph.axis import same_size
from tokenpass.tracing import calls, fake_value

aten = torch.ops.aten
BUFFERS = frozenset(
    {
        aten.empty.memory_format,
        aten.new_empty.default,
        aten.empty_like.default,
        aten.zeros.default,
        aten.new_zeros.default,
        aten.zeros_like.default,
    }
)


@dataclass(frozen=True, eq=False)
class Piece:
    """A copy into `start:end` of one dimension of a buffer."""

    dim: int
    start: int
    end: int
    view: Node
    copy: Node

    @property
    def source(self) -> Node:
        """What is copied."""
        return self.copy.args[1]  # type: ignore[return-value]


def without_filled_buffers(module: GraphModule) -> None:
    """Replace such buffers, in order."""
    graph = module.graph
    found = [node for node in calls(graph) if node.target in BUFFERS]
    for node in found:
        pieces = pieces_of(node)
        if pieces and fills(node, pieces) and unread_before(node, pieces, graph):
            concatenate(node, pieces, graph)
    if found:
        module.recompile()


def pieces_of(buffer: Node) -> list[Piece]:
    """Copies into slices of a buffer that serve nothing else, in the order of their places."""
    found = []
    for view in buffer.users:
        (copy, *others) = view.users or (None,)
        if view.target is not aten.slice.Tensor or copy is None or others or copy.users:
            continue
        if copy.target is not aten.copy_.default or copy.args[0] is not view:
            continue
        dim, start, end, step = (*view.args[1:], *(0, 0, 2**63 - 1, 1)[len(view.args) - 1 :])
        fixed = isinstance(start, int) and isinstance(end, int) and start >= 0 and end > start
        if (
            fixed
            and step == 1
            and isinstance(copy.args[1], Node)
            and same_shape(view, copy.args[1])
        ):
            rank = fake_value(buffer).dim()
            found.append(Piece(dim % rank, start, end, view, copy))  # type: ignore[operator]
    return sorted(found, key=lambda piece: piece.start)


def same_shape(view: Node, source: Node) -> bool:
    """Whether a copy neither broadcasts nor converts."""
    one, other = fake_value(view), fake_value(source)
    if not isinstance(other, torch.Tensor) or one.dtype != other.dtype or one.dim() != other.dim():
        return False
    sizes = zip(one.shape, other.shape, strict=True)
    return one.device == other.device and all(same_size(a, b) for a, b in sizes)


def fills(buffer: Node, pieces: list[Piece]) -> bool:
    """Whether pieces stand side by side along one dimension, from its first place to its last."""
    dim = pieces[0].dim
    ends = [0, *(piece.end for piece in pieces)]
    size = fake_value(buffer).shape[dim]
    side_by_side = all(p.dim == dim and p.start == e for p, e in zip(pieces, ends, strict=False))
    return side_by_side and isinstance(size, int) and ends[-1] >= size


def unread_before(buffer: Node, pieces: list[Piece], graph: Graph) -> bool:
    """Whether the buffer is first read behind the last copy, and what is copied never changes."""
    order = {node: at for at, node in enumerate(graph.nodes)}
    last = max(order[piece.copy] for piece in pieces)
    views = {piece.view for piece in pieces}
    written = written_nodes(graph)
    return all(user in views or order[user] > last for user in buffer.users) and not any(
        piece.source in written for piece in pieces
    )


def concatenate(buffer: Node, pieces: list[Piece], graph: Graph) -> None:
    """One new value in place of the buffer."""
    order = {node: at for at, node in enumerate(graph.nodes)}
    with graph.inserting_after(max((piece.copy for piece in pieces), key=order.__getitem__)):
        sources = [piece.source for piece in pieces]
        made = graph.call_function(aten.cat.default, (sources, pieces[0].dim))
    made.meta = {**buffer.meta, **{k: v for k, v in pieces[-1].copy.meta.items() if k != "val"}}
    for piece in pieces:
        graph.erase_node(piece.copy)
        graph.erase_node(piece.view)
    buffer.replace_all_uses_with(made)
    graph.erase_node(buffer)
