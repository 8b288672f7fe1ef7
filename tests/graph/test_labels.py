"""Labels on traced graphs: joined, composite, constant; and samples that stay apart."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tokenpass.graph.labels import Labels
from tokenpass.tracing import placeholders

X = torch.randn(2, 5, 4)


def labelled(trace, function, *examples, dynamic=()):
    module = trace(function, *examples, dynamic=dynamic)
    labels = Labels(module.graph)
    nodes = {node.name: node for node in module.graph.nodes}
    (batch,), (tokens,), (width,) = labels[placeholders(module)[0]]
    return labels, nodes, batch, tokens, width


def test_sizes_of_one_count_nothing(trace):
    labels, nodes, _, tokens, _ = labelled(trace, lambda x: x[:, :, None].sum(-1, True), X)
    assert labels[nodes["unsqueeze"]][2] == () == labels[nodes["sum_1"]][3]
    assert labels[nodes["unsqueeze"]][1] == (tokens,)


def test_range_meets_tokens(trace):
    """A table indexed by a range counts tokens once it is added to them."""

    def function(x, table):
        return x + F.embedding(torch.arange(5), table)

    labels, nodes, _, tokens, _ = labelled(trace, function, X, torch.randn(9, 4))
    assert labels[nodes["arange"]][0][0].axis.root is tokens.axis.root


def test_masks_of_ones_stay_constant(trace):
    labels, nodes, *_ = labelled(trace, lambda x: x * x.new_ones(2, 5, 1), X)
    assert all(f.axis.constant for dim in labels[nodes["new_ones"]] for f in dim)


def test_comparison_that_always_holds_is_constant(trace):
    """HF builds masks with `positions >= 0`: they hide nothing."""

    def function(x):
        seen = torch.arange(5)[:, None].expand(5, 5) >= 0
        return torch.where(seen, x @ x.transpose(1, 2), 0.0)

    labels, nodes, *_ = labelled(trace, function, X)
    assert all(f.axis.constant for dim in labels[nodes["ge"]] for f in dim)


def test_operators_without_a_rule_give_new_axes(trace):
    labels, nodes, _, tokens, _ = labelled(trace, lambda x: torch.linalg.qr(x)[0], X)
    axes = {f.axis.root for dim in labels[nodes["getitem"]] for f in dim}
    assert tokens.axis.root not in axes


def test_cross_attention_is_of_two_axes(trace):
    def function(x, y):
        return F.scaled_dot_product_attention(x, y, y)

    labels, nodes, _, tokens, _ = labelled(trace, function, X, torch.randn(2, 5, 4))
    out = labels[nodes["scaled_dot_product_attention"]]
    other = labels[nodes["y_1" if "y_1" in nodes else "arg1_1"]]
    assert out[1][0].axis.root is tokens.axis.root is not other[1][0].axis.root


SAMPLES = {
    "elementwise": (lambda x: x * 2 + 1, True),
    "projection": (lambda x: x @ x.new_ones(4, 3), True),
    "softmax over tokens": (lambda x: x.softmax(1), True),
    "flattened rows": (lambda x: x.view(-1, 4), True),
    "tokens summed": (lambda x: x.sum(1), True),
    "both summed": (lambda x: x.sum((0, 1)), True),
    "mean over samples": (lambda x: x.mean(0, keepdim=True), False),
    "softmax over samples": (lambda x: x.softmax(0), False),
    "cumulative over samples": (lambda x: x.cumsum(0), False),
    "samples reversed": (lambda x: x.flip(0), False),
    "one sample": (lambda x: x[1], False),
    "samples picked": (lambda x: x[torch.tensor([1, 0])], False),
    "pairs of samples": (lambda x: x.view(2, 1, 5, 4).chunk(2)[0], False),
    "samples multiplied": (lambda x: x.transpose(0, 1).transpose(1, 2) @ x.new_ones(2, 3), False),
    "samples beside samples": (lambda x: x.transpose(0, 1) @ x.permute(1, 2, 0), False),
    "rows beside rows": (lambda x: x.view(-1, 4) @ x.view(-1, 4).t(), False),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_apart(trace, name):
    """What mixes samples must see tokens that were cut for each sample at full length."""
    function, apart = SAMPLES[name]
    labels, nodes, batch, tokens, _ = labelled(trace, function, X)
    calls = [n for n in nodes.values() if n.op == "call_function" and n in labels.of]
    calls = [n for n in calls if "getitem" not in n.name and n.all_input_nodes]
    kept = all(labels.keeps_samples(node, batch.axis, tokens.axis) for node in calls)
    assert kept == apart


def causal_mask(x):
    return torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9)


def by_count(x):
    return x.new_ones(2, 5).cumsum(-1)


def written_later(x):
    mask = x.new_ones(2, 5)
    mask[:, 3:] = 0
    return mask


def shifted_range(x):
    places = torch.arange(5)
    places.sub_(3)
    return places >= 0


@pytest.mark.parametrize("function", [causal_mask, by_count, written_later, shifted_range])
def test_what_differs_by_place_is_not_constant(trace, function):
    """A triangle of ones, a running count, ones of which some are overwritten."""
    labels, nodes, *_ = labelled(trace, lambda x: function(x) * 1, X)
    name = "mul" if "mul" in nodes else next(n for n in reversed(nodes) if n != "output")
    assert not labels[nodes[name]][-1][0].axis.constant


def test_a_gather_of_all_ranks_widths_keeps_samples_and_tokens(trace):
    ranks = torch.ops._c10d_functional

    def function(x):
        both = ranks.wait_tensor(ranks.all_gather_into_tensor(x, 2, "0"))
        return torch.cat(both.chunk(2, 0), -1)

    labels, nodes, batch, tokens, width = labelled(trace, function, X)
    assert labels[nodes["wait_tensor"]][0][1:] == (batch,)
    assert labels[nodes["cat"]][:2] == ((batch,), (tokens,))
    assert labels[nodes["cat"]][2] != (width,)
