"""Why tokens came back within the layers, where that costs what had been gained."""

from __future__ import annotations

from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.call import Operand
from tokenpass.graph.rules_layout import Reshape
from tokenpass.graph.view import View
from tokenpass.tracing import is_float, module_path, source_line

CAME_BACK = "all come back before it, and nothing is gained there"


def return_reason(
    view: View, node: Node, operand: Operand, at: tuple[int, int], source: Node | None
) -> Rejection | None:
    """The reason, if a call between a stream's attentions needs its tokens; None elsewhere.

    A head that reads tokens at their places, and a table that is read whole, are no reason.
    """
    refused = next((s.refused for s in view.labels.row_sets if s.sort is node), None)
    cut = operand.label[at[0]][at[1]].cut
    stream = next((s for s in view.streams if cut is not None and s.axis is cut.axis), None)
    if stream is None or not stream.regions or (source is not None and not operand.stream):
        return None
    if refused is None and source is not None and not is_float(source):
        return None
    order = {n: place for place, n in enumerate(view.module.graph.nodes)}
    if order[node] >= order[stream.regions[-1].node]:
        return None
    where, line = module_path(node) or node.name, source_line(node)
    if refused is not None:
        text = f"rows are sorted, and {refused[1]}: {CAME_BACK}"
        return Rejection("rows_reordered", where, text, source=line)
    if isinstance(find_rule(node.target), Reshape):
        text = f"tokens are laid out in windows or groups of their own: {CAME_BACK}"
        return Rejection("window_partition", where, text, source=line)
    text = f"{node.target} needs every token, each at its place: {CAME_BACK}"
    return Rejection("place_matters", where, text, source=line)
