"""Spellings of mixtures of experts: those that treat every row apart, and those that do not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.integrations import moe

aten = torch.ops.aten
BATCH, TOKENS, WIDTH, EXPERTS, BEST, INNER = 3, 9, 16, 4, 2, 8
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
    """As in a compiled model of any dtype but bfloat16: the library's own product of groups."""
    rows, weights, experts = routed(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moe, "_can_use_grouped_mm", lambda *_: False)
        return moe.grouped_mm_experts_forward(Config(), rows, experts, weights).view(x.shape)


def library_batched(x):
    rows, weights, experts = routed(x)
    return moe.batched_mm_experts_forward(Config(), rows, experts, weights).view(x.shape)


def fused(rows, keys):
    """The fused product of groups, in the dtype that has one."""
    ends = torch.histc(keys.float(), EXPERTS, 0, EXPERTS - 1).cumsum(0, dtype=torch.int32)
    return aten._grouped_mm(rows.bfloat16(), UP.transpose(1, 2).bfloat16(), ends).double()


def half_precision(x):
    rows, weights, experts = routed(x)
    keys, order = experts.reshape(-1).sort()
    mixed = F.silu(fused(rows[order // BEST], keys)) * weights.reshape(-1)[order][:, None]
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


def arranged(x):
    """Numbers of rows are laid out anew, and every row is mixed within itself."""
    rows, _, experts = routed(x)
    order = torch.argsort(experts.flatten())
    place = order.unsqueeze(1).squeeze(1) // BEST
    mixed = grouped(rows[place[:, None].view(-1)], experts.flatten()[order])
    mixed = mixed.softmax(-1) @ UP[0]
    return mixed[order.argsort()].view(*x.shape[:2], BEST, -1).sum(2)


SOUND = (
    library_grouped,
    half_precision,
    added_back,
    added_to_zeros,
    put_back,
    twice_sorted,
    experts_first,
    one_expert,
    arranged,
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


def fused_falling_order(x):
    rows, _, experts = routed(x, 1)
    keys, order = experts.squeeze(-1).sort(descending=True)
    return fused(rows[order], keys)[order.argsort()].view(x.shape)


def left_in_order(x):
    rows, _, experts = routed(x, 1)
    keys, order = experts.squeeze(-1).sort()
    return grouped(rows[order], keys)


UNSOUND = {
    sums_over_rows: "aten.mean.dim needs all rows",
    running_sum: "aten.cumsum.default needs all rows",
    attends: "aten.softmax.int sums over rows",
    numbers_as_values: "aten.mul.Tensor uses numbers of rows as values",
    first_rows_only: "aten.slice.Tensor uses numbers of rows as values",
    table_by_rows: "aten.index.Tensor uses numbers of rows as values",
    table_beside: "beside rows",
    other_counts: "grouped_mm_fallback.default uses numbers of rows as values",
    falling_order: "grouped_mm_fallback.default uses numbers of rows as values",
    fused_falling_order: "aten._grouped_mm.default uses numbers of rows as values",
    left_in_order: "rows leave the graph",
}
