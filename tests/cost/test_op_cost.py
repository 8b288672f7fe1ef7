"""Flops and dims of operators against hand computation."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch.nn import functional as F

from tokenpass.cost.op_cost import op_cost
from tokenpass.ops.cost_record import OpCost


def cost_of(trace, function, *examples, own=None) -> tuple[OpCost, bool]:
    """The cost of the last operator that does work."""
    costs = [op_cost(node, own or {}) for node in trace(function, *examples).graph.nodes]
    return next(item for item in reversed(costs) if item[0].work != "view")


def test_linear(trace):
    cost, known = cost_of(
        trace, F.linear, torch.randn(2, 5, 7), torch.randn(11, 7), torch.randn(11)
    )
    assert known
    assert cost == OpCost("gemm", sympy.Integer(2 * 10 * 11 * 7 + 10 * 11), (1, 10, 11, 7))


def test_batched_matmul_and_folded_matmul(trace):
    heads, _ = cost_of(trace, torch.matmul, torch.randn(2, 3, 5, 7), torch.randn(2, 3, 7, 4))
    assert (heads.work, heads.dims) == ("bmm", (6, 5, 4, 7))
    assert heads.flops == 2 * 6 * 5 * 4 * 7
    folded, _ = cost_of(trace, torch.matmul, torch.randn(2, 5, 7), torch.randn(7, 4))
    assert (folded.work, folded.dims) == ("gemm", (1, 10, 4, 7))


def test_addmm_counts_the_added_matrix(trace):
    cost, _ = cost_of(trace, torch.addmm, torch.randn(4), torch.randn(3, 5), torch.randn(5, 4))
    assert cost.flops == 2 * 3 * 5 * 4 + 3 * 4


def test_grouped_rows_are_multiplied_once(trace):
    rows, weight = torch.randn(12, 8).bfloat16(), torch.randn(4, 8, 16).bfloat16()
    ends = torch.tensor([3, 6, 9, 12], dtype=torch.int32)
    cost, known = cost_of(trace, torch.ops.aten._grouped_mm, rows, weight, ends)
    assert known and (cost.work, cost.dims) == ("bmm", (4, 3, 8 * 2, 8))
    assert cost.flops == 2 * 12 * 16 * 8


def test_patch_convolution_is_its_gemm(trace):
    def patches(x, weight):
        return F.conv2d(x, weight, stride=4)

    cost, _ = cost_of(trace, patches, torch.randn(2, 3, 8, 8), torch.randn(16, 3, 4, 4))
    assert (cost.work, cost.dims) == ("conv", (1, 2 * 4, 16, 48))
    assert cost.flops == 2 * 8 * 16 * 48


def test_attention(trace):
    q, kv = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 10, 8)
    cost, _ = cost_of(trace, F.scaled_dot_product_attention, q, kv, kv)
    assert (cost.work, cost.dims) == ("attention", (8, 6, 10, 8))
    assert cost.flops == 2 * 8 * 6 * 10 * (8 + 8)


def test_causal_attention_counts_visited_pairs(trace):
    def causal(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    q = torch.randn(1, 2, 6, 8)
    cost, _ = cost_of(trace, causal, q, q, q)
    pairs = sum(row + 1 for row in range(6))
    assert cost.flops == 2 * 2 * pairs * 16
    longer = torch.randn(1, 2, 10, 8)
    pairs = sum(min(row + 1, 6) for row in range(10))
    assert cost_of(trace, causal, longer, q, q)[0].flops == 2 * 2 * pairs * 16
    assert cost_of(trace, causal, q, longer, longer)[0].flops == cost.flops


def test_grouped_and_masked_attention(trace):
    def grouped(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    q, kv = torch.randn(1, 8, 6, 4), torch.randn(1, 2, 6, 4)
    cost, _ = cost_of(trace, grouped, q, kv, kv, torch.randn(1, 1, 6, 6))
    assert (cost.work, cost.dims) == ("masked_attention", (8, 6, 6, 4))
    assert cost.flops == 2 * 8 * 36 * 8


@pytest.mark.parametrize(
    ("function", "work", "elements"),
    [
        (lambda x: F.layer_norm(x, (6,)), "reduction", 24),
        (lambda x: x.softmax(-1), "reduction", 24),
        (lambda x: x.mean(-1), "reduction", 24),
        (F.gelu, "special", 24),
        (lambda x: x**2, "pointwise", 24),
        (lambda x: x**3.5, "special", 24),
        (lambda x: x + x, "pointwise", 24),
        (lambda x: x[:, [0, 2]], "gather", 8),
        (lambda x: x.sort(-1).values, "sort", 24),
    ],
)
def test_elementwise_kinds(trace, function, work, elements):
    cost, known = cost_of(trace, function, torch.randn(4, 6))
    assert known
    assert (cost.work, cost.dims) == (work, (elements,))


def test_views_are_free_and_copies_are_not(trace):
    def shapes(x):
        heads = x.view(2, 3, 4, 2).transpose(1, 2)
        return heads, heads.reshape(2, 12, 2)

    works = {
        node.name: op_cost(node, {})[0].work
        for node in trace(shapes, torch.randn(2, 3, 8)).graph.nodes
    }
    assert works["view"] == works["transpose"] == "view"
    assert works["reshape"] == "pointwise"


def test_in_place_operators_work(trace):
    cost, known = cost_of(trace, lambda x: x.clone().add_(1), torch.randn(4))
    assert known and cost.work == "pointwise"


def test_unknown_operator_is_told(trace):
    cost, known = cost_of(trace, lambda x: torch.linalg.inv(x), torch.randn(4, 4))
    assert not known
    assert cost.dims == (16,)


def test_own_rule_is_called_like_the_operator(trace):
    seen = {}

    def rule(out, x, dim, keepdim=False):
        seen.update(shape=tuple(x.shape), dim=dim, keepdim=keepdim, out=tuple(out.shape))
        return OpCost("gemm", sympy.Integer(7), (1, 1, 1, 7))

    own = {torch.ops.aten.logsumexp.default: rule}
    cost, known = cost_of(
        trace, lambda x: torch.logsumexp(x, [1], keepdim=True), torch.randn(4, 6), own=own
    )
    assert known and cost.flops == 7
    assert seen["shape"] == (4, 6) and seen["out"] == (4, 1)
