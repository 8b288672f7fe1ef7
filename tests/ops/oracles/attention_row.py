"""The softmax of one query's scores, one key at a time in double precision."""

from __future__ import annotations

import math

import torch


def softmax(scores):
    """Probabilities of a list of scores; zeros where all are -inf."""
    top = max(scores, default=-math.inf)
    if top == -math.inf:
        return [0.0] * len(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def assert_correct(arguments, results):
    query, keys, bias, scale = arguments
    out = results
    batch, heads = query.shape[:2]
    group = heads // keys.shape[1]
    assert out.shape == (batch, heads, keys.shape[2])
    assert out.dtype == torch.promote_types(query.dtype, torch.float32)
    for b in range(batch):
        for h in range(heads):
            row = query[b, h, 0].tolist()
            scores = [
                scale * sum(x * y for x, y in zip(row, key, strict=True))
                for key in keys[b, h // group].tolist()
            ]
            if bias is not None:
                added = bias[b % bias.shape[0], h % bias.shape[1]].tolist()
                scores = [score + more for score, more in zip(scores, added, strict=True)]
            for got, want in zip(out[b, h].tolist(), softmax(scores), strict=True):
                assert abs(got - want) < 5e-6, (b, h, got, want)


def exact_cases():
    """Equal scores over a power of two of keys; hidden keys and hidden rows; grouped heads."""
    minus = -math.inf
    ones, keys = torch.ones(1, 2, 1, 4), torch.ones(1, 1, 8, 4)
    yield (ones, keys, None, 1.0), ([[[0.125] * 8] * 2],)
    hidden = torch.tensor([[[0.0] * 4 + [minus] * 4, [minus] * 8]])
    yield (ones, keys, hidden, 0.5), ([[[0.25] * 4 + [0.0] * 4, [0.0] * 8]],)
    yield (ones, keys[:, :, :1], None, 3.0), ([[[1.0], [1.0]]],)
    yield (ones[:0], keys[:0], None, 1.0), ([],)
    # Head 0 and 1 read key head 0, heads 2 and 3 key head 1; a score of -1000 is nothing.
    query = torch.tensor([10.0, 20.0, 10.0, 20.0])[None, :, None, None]
    keys = torch.tensor([[[[0.0], [-100.0]], [[-100.0], [0.0]]]])
    rows = [[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]
    yield (query, keys, None, 1.0), (rows,)
    yield (query, keys, torch.tensor([[[-500.0, -500.0]]]), 1.0), (rows,)
    # Longer than a block of a kernel: all the weight on keys in different blocks.
    bias = torch.full((1, 1, 1000), minus)
    bias[..., [3, 700]] = 0.0
    even = [0.0] * 1000
    even[3] = even[700] = 0.5
    yield (torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1000, 4), bias, 1.0), ([[even]],)
