"""What heads read is named as a person would name it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tokenpass.graph.reading import reads
from tokenpass.graph.view import analyse

X, KEEP = torch.randn(2, 7, 6), torch.ones(2, 7)
QUERY = nn.Parameter(torch.randn(1, 1, 6))


def pooled_by_attention(x, keep):
    return F.scaled_dot_product_attention(QUERY.expand(2, -1, -1), x, x)


def pooled_by_written_attention(x, keep):
    return ((QUERY @ x.transpose(1, 2)).softmax(-1) @ x)[:, 0]


def masked_mean(x, keep):
    return (x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)


READS = {
    "first token": lambda x, keep: x[:, 0],
    "last token": lambda x, keep: x[:, -1],
    "token 3": lambda x, keep: x[:, 3],
    "tokens 1 to 6": lambda x, keep: x[:, 1:],
    "mean of tokens": lambda x, keep: x.mean(1),
    "sum of tokens": lambda x, keep: x.sum(1),
    "maximum over tokens": lambda x, keep: x.amax(1),
    "masked mean of tokens": masked_mean,
    "token at an argmax": lambda x, keep: x[torch.arange(2), keep.argmax(-1)],
    "token at a computed position": lambda x, keep: x[torch.arange(2), keep.sum(-1).long() - 1],
    "all tokens": lambda x, keep: x.sin(),
}
POOLED = (pooled_by_attention, pooled_by_written_attention)


def read(trace, head):
    """What is read behind one attention."""
    module = trace(lambda x, keep: head(F.scaled_dot_product_attention(x, x, x) * 2, keep), X, KEEP)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    view = analyse(module, inputs)
    (stream,) = view.streams
    return reads(stream, view.labels)


@pytest.mark.parametrize("name", READS)
def test_a_reading_has_a_name(trace, name):
    assert read(trace, READS[name]) == (name,)


@pytest.mark.parametrize("head", POOLED, ids=lambda f: f.__name__)
def test_attention_by_other_queries_is_pooling(trace, head):
    assert "attention pooling" in read(trace, head)


def test_several_readings_are_all_named(trace):
    assert read(trace, lambda x, keep: (x[:, 0], x)) == ("first token", "all tokens")
