"""Which values share memory, and which of them are written to.

A write through an alias after a site would act on a copy once the site is edited, so such values
are never edited. Aliases are over-estimated: an operator that may return its input counts as one
that does.
"""

from __future__ import annotations

import operator

import networkx as nx
import torch
from torch.fx import Graph, Node

from tokenpass.graph.axis_rules import mutates
from tokenpass.tracing import calls

aten = torch.ops.aten
MAY_ALIAS = frozenset(
    {
        aten.reshape,
        aten.flatten,
        aten.unflatten,
        aten.contiguous,
        aten.to,
        aten.dropout,
        aten.chunk,
        aten.movedim,
        aten.expand_as,
        aten.view_as,
        aten.type_as,
        aten.broadcast_to,
        aten.narrow,
        aten.numpy_T,
    }
)


def written_nodes(graph: Graph) -> dict[Node, Node]:
    """Every node that shares memory with a written one, and the node that writes."""
    shared = nx.Graph()
    writers: list[tuple[Node, Node]] = []
    for node in calls(graph):
        for source in aliased_inputs(node):
            shared.add_edge(source, node)
        writers += [(source, node) for source in written_inputs(node)]
    written: dict[Node, Node] = {}
    for source, writer in writers:
        family = nx.node_connected_component(shared, source) if source in shared else {source}
        for node in family | {source}:
            written.setdefault(node, writer)
    return written


def aliased_inputs(node: Node) -> list[Node]:
    """Inputs whose memory the node's output may share."""
    target = node.target
    if target is operator.getitem and separate_outputs(node.args[0]):
        return []
    if not isinstance(target, torch._ops.OpOverload):
        return list(node.all_input_nodes)  # getitem and unknown callables
    if target.overloadpacket in MAY_ALIAS:
        return [arg for arg in node.args[:1] if isinstance(arg, Node)]
    return [
        value
        for value, argument in bound_nodes(node)
        if argument.alias_info is not None and any(r.alias_info for r in target._schema.returns)
    ]


def separate_outputs(node: object) -> bool:
    """Whether a call's outputs are new tensors, each with memory of its own (topk, sort)."""
    target = node.target if isinstance(node, Node) else None
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.overloadpacket not in MAY_ALIAS
        and not any(returned.alias_info for returned in target._schema.returns)
    )


def written_inputs(node: Node) -> list[Node]:
    """Inputs that the node writes to."""
    if not isinstance(node.target, torch._ops.OpOverload) or not mutates(node.target):
        return []
    return [
        value
        for value, argument in bound_nodes(node)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def bound_nodes(node: Node) -> list[tuple[Node, torch._C.Argument]]:
    """Node arguments with their schema entries (lists are flattened)."""
    found = []
    for at, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        value = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name)
        items = value if isinstance(value, list | tuple) else [value]
        found += [(item, argument) for item in items if isinstance(item, Node)]
    return found
