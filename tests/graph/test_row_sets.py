"""Mixtures of experts in many spellings: some of the rows give what they give among all of them."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule
from torch.nn import functional as F
from transformers.integrations import moe

from tokenpass.capture.normal_form import NORMAL_FORM
from tokenpass.capture.writes import without_unseen_writes
from tokenpass.graph.axis import find_axis, has_cut
from tokenpass.graph.labels import Labels
from tokenpass.graph.sites import Stream
from tokenpass.graph.view import View
from tokenpass.rewrite.reduction import Gather, Reduction
from tokenpass.rewrite.replay import Action, Replay

aten = torch.ops.aten
BATCH, TOKENS, WIDTH, EXPERTS, BEST, INNER = 2, 9, 16, 4, 2, 8
X = torch.randn(
    BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
ROUTE, UP, DOWN, BIAS = (
    torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for shape in (
        (EXPERTS, WIDTH),
        (EXPERTS, 2 * INNER, WIDTH),
        (EXPERTS, WIDTH, INNER),
        (EXPERTS, WIDTH),
    )
)


@pytest.fixture(autouse=True)
def compiling(monkeypatch):
    """As in a compiled model of any dtype but bfloat16: the library's own product of groups."""
    monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda *_: False)


class Config:
    """What the library's experts ask of a module."""

    num_experts, has_gate, has_bias, is_transposed = EXPERTS, True, True, False
    has_post_expert_norm, _is_expert_parallel = False, False
    act_fn = staticmethod(F.silu)
    gate_up_proj, down_proj, down_proj_bias = UP, DOWN, BIAS
    gate_up_proj_bias = torch.linspace(-1, 1, EXPERTS * 2 * INNER, dtype=torch.float64).view(
        EXPERTS, -1
    )

    @staticmethod
    def _apply_gate(both):
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up


def routed(x, best=BEST):
    """Rows, and for each of them its best experts with their weights."""
    rows = x.view(-1, WIDTH)
    weights, experts = torch.topk(F.linear(rows, ROUTE).softmax(-1), best, -1)
    return rows, weights / weights.sum(-1, keepdim=True), experts


def grouped(rows, experts):
    """Every row by the matrices of its expert, rows in the order of their experts."""
    ends = torch.histc(experts.float(), EXPERTS, 0, EXPERTS - 1).cumsum(0, dtype=torch.int32)
    product = torch.ops.transformers.grouped_mm_fallback
    gate, up = product(rows, UP.transpose(1, 2), ends).chunk(2, -1)
    return product(F.silu(gate) * up, DOWN.transpose(1, 2), ends)


def library_grouped(x):
    rows, weights, experts = routed(x)
    return moe.grouped_mm_experts_forward(Config(), rows, experts, weights).view(x.shape)


def library_batched(x):
    rows, weights, experts = routed(x)
    return moe.batched_mm_experts_forward(Config(), rows, experts, weights).view(x.shape)


def half_precision(x):
    """The fused product of groups, in the dtype that has one."""
    rows, weights, experts = routed(x)
    keys, order = experts.reshape(-1).sort()
    ends = torch.histc(keys.float(), EXPERTS, 0, EXPERTS - 1).cumsum(0, dtype=torch.int32)
    picked = rows[order // BEST].bfloat16()
    mixed = aten._grouped_mm(picked, UP.transpose(1, 2).bfloat16(), ends)
    mixed = F.silu(mixed.double()) * weights.reshape(-1)[order][:, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(order.shape[0])
    return mixed[back].view(BATCH, TOKENS, BEST, -1).sum(2)


def added_back(x):
    rows, weights, experts = routed(x)
    keys, order = experts.flatten().sort(stable=True)
    place = order // BEST
    mixed = grouped(rows[place], keys) * weights.flatten()[order, None]
    return torch.zeros_like(rows).index_add(0, place, mixed).view(x.shape)


def added_to_zeros(x):
    rows, weights, experts = routed(x)
    keys, order = experts.flatten().sort()
    place = torch.div(order, BEST, rounding_mode="floor")
    mixed = grouped(rows.index_select(0, place), keys) * weights.flatten()[order, None]
    out = torch.zeros(BATCH * TOKENS, WIDTH, dtype=torch.float64)
    out.index_add_(0, place, mixed)
    return out.view(x.shape)


def put_back(x):
    rows, weights, experts = routed(x)
    order = torch.argsort(experts.flatten())
    mixed = grouped(rows[order // BEST], experts.flatten()[order])
    out = torch.empty_like(mixed)
    out[order] = mixed
    return (out.view(-1, BEST, WIDTH) * weights[..., None]).sum(1).view(x.shape)


def twice_sorted(x):
    """The way back by a second sort."""
    rows, weights, experts = routed(x)
    order = experts.flatten().argsort()
    mixed = grouped(rows[order // BEST], experts.flatten()[order])
    mixed = mixed[order.argsort()].view(-1, BEST, WIDTH)
    return (mixed * weights[..., None]).sum(1).view(x.shape)


def experts_first(x):
    """Pairs laid out expert choice by expert choice: the row is the remainder."""
    rows, weights, experts = routed(x)
    keys, order = experts.t().reshape(-1).sort()
    mixed = grouped(rows[order % (BATCH * TOKENS)], keys)
    mixed = mixed * weights.t().reshape(-1)[order, None]
    return torch.zeros_like(rows).index_add(0, order % (BATCH * TOKENS), mixed).view(x.shape)


def one_expert(x):
    """Top one: rows themselves are sorted."""
    rows, weights, experts = routed(x, 1)
    keys, order = experts.squeeze(-1).sort()
    mixed = F.layer_norm(grouped(rows[order], keys) + BIAS[keys], [WIDTH])
    return (mixed[order.argsort()] * weights).view(x.shape)


SOUND = (
    library_grouped,
    half_precision,
    added_back,
    added_to_zeros,
    put_back,
    twice_sorted,
    experts_first,
    one_expert,
)


def sums_over_rows(x):
    rows, _, experts = routed(x, 1)
    keys, order = experts.squeeze(-1).sort()
    mixed = grouped(rows[order], keys)
    return (mixed - mixed.mean(0))[order.argsort()].view(x.shape)


def running_sum(x):
    rows, _, experts = routed(x, 1)
    keys, order = experts.squeeze(-1).sort()
    return grouped(rows[order], keys).cumsum(0)[order.argsort()].view(x.shape)


def attends(x):
    """Rows look at one another in the order of their experts."""
    rows, _, experts = routed(x, 1)
    mixed = rows[(order := experts.squeeze(-1).argsort())]
    mixed = (mixed @ mixed.t()).softmax(-1) @ mixed
    return mixed[order.argsort()].view(x.shape)


def numbers_as_values(x):
    rows, _, experts = routed(x, 1)
    order = experts.squeeze(-1).argsort()
    return (rows[order] * order[:, None])[order.argsort()].view(x.shape)


def first_rows_only(x):
    """A capacity: only some of the rows are computed."""
    rows, _, experts = routed(x, 1)
    order = experts.squeeze(-1).argsort()[:5]
    return rows.index_put([order], F.silu(rows[order])).view(x.shape)


def table_by_rows(x):
    """A table that has a line for each row, not for each expert."""
    rows, _, experts = routed(x, 1)
    order = experts.squeeze(-1).argsort()
    lines = torch.linspace(0, 1, BATCH * TOKENS)
    return (rows[order] * lines[order, None])[order.argsort()].view(x.shape)


def table_beside(x):
    """A table that meets the rows in the order of their experts."""
    rows, _, experts = routed(x, 1)
    order = experts.squeeze(-1).argsort()
    lines = torch.linspace(0, 1, TOKENS).expand(BATCH, -1).reshape(-1)
    return (rows[order] * lines[:, None])[order.argsort()].view(x.shape)


def other_counts(x):
    """Groups by other keys than those that were sorted."""
    rows, _, experts = routed(x, 1)
    order = experts.squeeze(-1).argsort()
    return grouped(rows[order], 3 - experts.squeeze(-1))[order.argsort()].view(x.shape)


def falling_order(x):
    """Groups rise, rows fall."""
    rows, _, experts = routed(x, 1)
    keys, order = experts.squeeze(-1).sort(descending=True)
    return grouped(rows[order], keys)[order.argsort()].view(x.shape)


def left_in_order(x):
    rows, _, experts = routed(x, 1)
    keys, order = experts.squeeze(-1).sort()
    return grouped(rows[order], keys)


UNSOUND = {
    sums_over_rows: "needs all rows",
    running_sum: "needs all rows",
    attends: "sums over rows",
    numbers_as_values: "uses numbers of rows as values",
    first_rows_only: "uses numbers of rows as values",
    table_by_rows: "uses numbers of rows as values",
    table_beside: "beside rows",
    other_counts: "uses numbers of rows as values",
    falling_order: "uses numbers of rows as values",
    left_in_order: "rows leave the graph",
}


def graph_of(trace, function, **dynamic) -> tuple[GraphModule, Labels]:
    """The captured graph, with writes that nobody sees as values."""
    module = trace(function, X, simpler=NORMAL_FORM, **dynamic)
    without_unseen_writes(module)
    return module, Labels(module.graph)


def shortened(module: GraphModule, labels: Labels, index: torch.Tensor):
    """A replay in which the input has lost tokens, and its output, which stays short."""
    (source,) = (node for node in module.graph.nodes if node.op == "placeholder")
    batch, axis = (labels[source][at][0].axis.root for at in (0, 1))
    cut = Reduction(axis, batch, TOKENS, index.shape[1], Gather(index), ordered=False)
    stream = Stream(axis, batch, (source,), (), {}, ())
    view = View(module, labels, (), (stream,), {}, frozenset(), None, ())
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    out = output.args[0]
    replay = Replay(view, {source: [Action(0, lambda *_: cut)]}, (), frozenset({out}))
    return replay, replay.run(X), out, axis


@pytest.mark.parametrize("function", SOUND, ids=lambda f: f.__name__)
@pytest.mark.parametrize("same", [True, False], ids=["same tokens", "tokens of each sample"])
def test_some_rows_give_what_they_give_among_all(trace, function, same):
    module, labels = graph_of(trace, function)
    (rows,) = labels.row_sets
    assert rows.refused is None, rows.refused
    noise = torch.rand(1 if same else BATCH, TOKENS, generator=torch.Generator().manual_seed(3))
    for count in (TOKENS, 4, 1):
        index = noise.argsort(1)[:, :count]
        replay, got, out, axis = shortened(module, labels, index)
        every = index.expand(BATCH, -1)[..., None].expand(-1, -1, got.shape[-1])
        assert replay.barriers == [] and has_cut(replay.label(out))
        assert find_axis(replay.label(out), axis) is not None
        # nothing was computed for the others on the way
        pairs = {
            replay.env[n].shape[0] for n in rows.calls if isinstance(replay.env[n], torch.Tensor)
        }
        assert pairs <= {BATCH * count, BATCH * count * BEST, EXPERTS}
        torch.testing.assert_close(got, function(X).gather(1, every), rtol=1e-9, atol=1e-9)


def test_experts_looked_up_need_no_set(trace):
    module, labels = graph_of(trace, library_batched)
    assert labels.row_sets == []
    index = torch.tensor([[7, 2, 3], [0, 8, 1]])
    replay, got, out, _ = shortened(module, labels, index)
    assert replay.barriers == [] and has_cut(replay.label(out))
    every = index[..., None].expand(-1, -1, WIDTH)
    torch.testing.assert_close(got, library_batched(X).gather(1, every), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", UNSOUND, ids=lambda f: f.__name__)
def test_what_is_not_shown_runs_on_all_rows(trace, function):
    _, labels = graph_of(trace, function)
    refused = [rows.refused for rows in labels.row_sets]
    assert all(refused) and UNSOUND[function] in refused[0][1]
    assert not labels.table.row_wise


def test_dynamic_length(trace):
    _, labels = graph_of(trace, library_grouped, dynamic=[(0, 1)])
    (rows,) = labels.row_sets
    assert rows.refused is None, rows.refused


def test_two_sets_in_a_row(trace):
    _, labels = graph_of(trace, lambda x: added_back(x + library_grouped(x)))
    assert [rows.refused for rows in labels.row_sets] == [None, None]
    assert len(labels.row_sets[0].exits) == len(labels.row_sets[1].exits) == 1
    assert not {*labels.row_sets[0].calls} & {*labels.row_sets[1].calls}
