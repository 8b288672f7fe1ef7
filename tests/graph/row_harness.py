"""Checks what is shown of rows between a sort and their way back, on the graph of a spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from tokenpass.capture.normal_form import NORMAL_FORM
from tokenpass.capture.writes import without_unseen_writes
from tokenpass.graph.axis import find_axis, has_cut
from tokenpass.graph.labels import Labels
from tokenpass.graph.sites import Stream
from tokenpass.graph.view import View
from tokenpass.rewrite.reduction import Gather, Reduction
from tokenpass.rewrite.replay import Action, Replay

from .row_spellings import BATCH, BEST, EXPERTS, TOKENS, UNSOUND, X


def graph_of(trace: Callable[..., GraphModule], function: Any, **dynamic: Any) -> GraphModule:
    """The captured graph, with writes that nobody sees as values."""
    module = trace(function, X, simpler=NORMAL_FORM, **dynamic)
    without_unseen_writes(module)
    return module


def shortened(
    module: GraphModule, labels: Labels, index: torch.Tensor
) -> tuple[Replay, torch.Tensor]:
    """A replay in which the input has lost tokens, and its output, which stays short."""
    (source,) = (node for node in module.graph.nodes if node.op == "placeholder")
    batch, axis = (labels[source][at][0].axis.root for at in (0, 1))
    cut = Reduction(axis, batch, TOKENS, index.shape[1], Gather(index), ordered=False)
    stream = Stream(axis, batch, (source,), (), {}, ())
    view = View(module, labels, (), (stream,), {}, frozenset(), None, ())
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    out = output.args[0]
    replay = Replay(view, {source: [Action(0, lambda *_: cut)]}, (), frozenset({out}))
    got = replay.run(X)
    assert replay.barriers == [] and has_cut(replay.label(out))
    assert find_axis(replay.label(out), axis) is not None
    return replay, got


def picked(want: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The tokens of a whole output that a replay kept."""
    return want.gather(1, index.expand(BATCH, -1)[..., None].expand(-1, -1, want.shape[-1]))


def check_apart(module: GraphModule, want: torch.Tensor, index: torch.Tensor) -> None:
    """Assert that some rows give what they give among all, and nothing is done for the others."""
    labels = Labels(module.graph)
    (rows,) = labels.row_sets
    assert rows.refused is None, rows.refused
    replay, got = shortened(module, labels, index)
    values = [replay.env[node] for node in rows.calls]
    pairs = {value.shape[0] for value in values if isinstance(value, torch.Tensor)}
    count = BATCH * index.shape[1]
    assert pairs <= {count, count * BEST, EXPERTS}
    torch.testing.assert_close(got, picked(want, index), rtol=1e-9, atol=1e-9)


def check_refused(module: GraphModule, function: Any) -> None:
    """Assert that every set is refused, the first for the reason that the spelling is about."""
    labels = Labels(module.graph)
    refused = [rows.refused for rows in labels.row_sets]
    assert all(refused) and refused[0] is not None
    assert UNSOUND[function] in refused[0][1]
    assert not labels.table.row_wise
