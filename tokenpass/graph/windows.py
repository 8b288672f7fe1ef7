"""Attention within windows: its tokens are a part of an axis whose other part is with the samples.

[batch, (windows x entries), width]  ->  [batch x windows, entries, width]
"""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Graph, Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import Axis, Factor, Label, factors
from tokenpass.graph.labels import Labels
from tokenpass.graph.regions import FUSED, SOFTMAX, node_argument, product_after, product_before
from tokenpass.tracing import calls, module_path, source_line


def windowed_attention(graph: Graph, labels: Labels, inputs: Collection[Node] = ()) -> list[Node]:
    """Attention that runs within windows, whether or not it is a region.

    `inputs` hold data: their axes (samples) are no windows, though they may stand beside tokens.
    """
    given = {f.axis.root for node in inputs if node in labels.of for f in factors(labels[node])}
    return [
        node
        for node in calls(graph)
        if (asking := queries(node)) is not None and is_windowed(labels[asking], labels, given)
    ]


def queries(node: Node) -> Node | None:
    """An attention's queries, or its bare scores, `[.., queries, any]`; None for other calls."""
    if node.target is FUSED:
        return node_argument(node, 0)
    if node.target in SOFTMAX and product_after(node) is not None:
        return product_before(node)
    return None


def is_windowed(label: Label, labels: Labels, given: set[Axis]) -> bool:
    """Whether rows count a part of an axis, and a dimension before them the other part."""
    if len(label) < 3:
        return False
    before = [f for dim in label[:-2] for f in dim if f.axis.root not in given]
    mine = {axis for factor in label[-2] for axis in wholes(factor, labels)}
    return any(axis in mine for factor in before for axis in wholes(factor, labels))


def wholes(factor: Factor, labels: Labels) -> set[Axis]:
    """The axes that a factor's axis is a part of; not those of which nothing is known."""
    return {
        whole.root
        for parts, whole in labels.table.wholes.items()
        if whole not in labels.unknown and any(p.root is factor.axis.root for p in parts)
    }


def window_rejection(node: Node, labels: Labels) -> Rejection:
    """Why nothing is gained on tokens that attend within windows."""
    rows = labels[queries(node) or node][-2]
    size = "x".join(str(factor.axis.size) for factor in rows)
    return Rejection(
        "window_partition",
        module_path(node) or node.name,
        f"tokens are laid out in windows of {size} and attend within them: with fewer of them the "
        "windows would hold others, so all are there in every layer and nothing is gained",
        source=source_line(node),
    )
