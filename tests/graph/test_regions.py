"""Attention is recognised however it is written."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tokenpass.graph.causality import Examples
from tokenpass.graph.labels import Labels
from tokenpass.graph.regions import attention_regions

Q, K, V = (torch.randn(2, 3, 5, 4) for _ in range(3))
ROWS = torch.randn(2, 5, 12)


def heads(x):
    return x.view(2, 5, 3, 4).transpose(1, 2)


def fused(x):
    return F.scaled_dot_product_attention(heads(x), heads(x * 2), heads(x * 3))


def causal(x):
    return F.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True)


def masked(x):
    bias = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    return F.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=bias)


def padded(x):
    keep = (x[:, :, 0] > -9)[:, None, None, :]
    return F.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=keep)


def written(x):
    scores = heads(x) @ heads(x * 2).transpose(-1, -2) / 2
    return F.dropout(scores.softmax(-1), 0.1, False) @ heads(x * 3)


def written_masked(x):
    scores = torch.matmul(heads(x), heads(x).transpose(2, 3)) * 0.5
    scores = scores + torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9)
    return F.softmax(scores.float(), dim=-1).to(x.dtype) @ heads(x)


def written_flat(x):
    rows = heads(x).reshape(6, 5, 4)
    return torch.bmm(torch.bmm(rows, rows.transpose(1, 2)).softmax(-1), rows)


def cross(x):
    other = torch.ones(2, 3, 7, 4) * x.sum()
    return F.scaled_dot_product_attention(heads(x), other, other)


def no_attention(x):
    return x.softmax(-1) @ x.new_ones(12, 4)


FOUND = {fused: (True, False), causal: (True, True), masked: (True, True), padded: (True, False),
         written: (True, False), written_masked: (True, True), written_flat: (True, False),
         cross: (False, False)}  # fmt: skip


def regions(trace, function):
    module = trace(function, ROWS)
    return attention_regions(module.graph, Labels(module.graph), Examples())


@pytest.mark.parametrize("function", FOUND, ids=lambda f: f.__name__)
def test_attention_is_found(trace, function):
    (region,) = regions(trace, function)
    assert (region.is_self, region.causal) == FOUND[function]
    assert region.layer == 0 and region.query is not None


def test_other_products_and_softmaxes_are_not_attention(trace):
    assert regions(trace, no_attention) == []


def test_mask_is_kept(trace):
    for function in (masked, padded, written_masked):
        (region,) = regions(trace, function)
        assert len(region.masks) == 1
    assert regions(trace, fused)[0].masks == ()


def test_hand_written_attention_knows_its_probabilities(trace):
    (region,) = regions(trace, written)
    assert region.probabilities is not None and region.key_transposed
    assert region.node.target is torch.ops.aten.matmul.default


def test_layers_count_in_graph_order(trace):
    def two(x):
        y = fused(x).transpose(1, 2).reshape(2, 5, 12)
        return written(x + y)

    found = regions(trace, two)
    assert [region.layer for region in found] == [0, 1]
    assert found[0].query_axis is found[1].key_axis
