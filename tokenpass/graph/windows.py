"""Attention within windows: its tokens are a part of an axis whose other part is with the samples.

[batch, (windows x entries), width]  ->  [batch x windows, entries, width]
"""

from __future__ import annotations

from torch.fx import Graph, Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import Axis, Factor, Label
from tokenpass.graph.labels import Labels
from tokenpass.graph.regions import FUSED, SOFTMAX, node_argument, product_after, product_before
from tokenpass.tracing import calls, module_path, source_line


def windowed_attention(graph: Graph, labels: Labels) -> list[Node]:
    """Attention that runs within windows, whether or not it is a region."""
    found = []
    for node in calls(graph):
        fused = node.target is FUSED
        written = node.target in SOFTMAX and len(labels[node]) > 2
        if not (fused or (written and product_before(node) and product_after(node))):
            continue
        if is_windowed(labels[node_argument(node, 0)], labels):
            found.append(node)
    return found


def is_windowed(label: Label, labels: Labels) -> bool:
    """Whether rows count a part of an axis, and a dimension before them the other part."""
    rows, before = label[-2], [factor for dim in label[:-2] for factor in dim]
    mine = {axis for factor in rows for axis in wholes(factor, labels)}
    return any(axis in mine for factor in before for axis in wholes(factor, labels))


def wholes(factor: Factor, labels: Labels) -> set[Axis]:
    """The axes that a factor's axis is a part of."""
    return {
        whole.root
        for parts, whole in labels.table.wholes.items()
        if any(part.root is factor.axis.root for part in parts)
    }


def window_rejection(node: Node, labels: Labels) -> Rejection:
    """Why nothing is gained on tokens that attend within windows."""
    rows = labels[node_argument(node, 0)][-2]
    size = "x".join(str(factor.axis.size) for factor in rows)
    return Rejection(
        "window_partition",
        module_path(node) or node.name,
        f"tokens are laid out in windows of {size} and attend within them: with fewer of them the "
        "windows would hold others, so all are there in every layer and nothing is gained",
        source=source_line(node),
    )
