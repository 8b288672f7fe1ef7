"""Sums over queries of softmaxed scores, one query and one key at a time."""

from __future__ import annotations

import math

import torch


def row(query, keys, added, scale, causal, place):
    """Probabilities of one query, in double precision; zeros where it sees nothing."""
    scores = [
        scale * sum(x * y for x, y in zip(query, key, strict=True)) + more
        for key, more in zip(keys, added, strict=True)
    ]
    if causal:
        scores = [s if j <= place else -math.inf for j, s in enumerate(scores)]
    top = max(scores, default=-math.inf)
    if top == -math.inf:
        return [0.0] * len(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def assert_correct(arguments, results):
    query, keys, bias, causal, scale = arguments
    out = results
    batch, heads = query.shape[:2]
    tokens, group = keys.shape[2], heads // keys.shape[1]
    assert out.shape == (batch, heads, tokens)
    assert out.dtype == torch.promote_types(query.dtype, torch.float32)
    none = [0.0] * tokens
    for b in range(batch):
        for h in range(heads):
            target, wanted = keys[b, h // group].tolist(), [0.0] * tokens
            for q, asking in enumerate(query[b, h].tolist()):
                added = none
                if bias is not None:
                    shape = bias.shape
                    added = bias[b % shape[0], h % shape[1], q % shape[2]].tolist()
                paid = row(asking, target, added, scale, causal, q)
                wanted = [x + y for x, y in zip(wanted, paid, strict=True)]
            for got, want in zip(out[b, h].tolist(), wanted, strict=True):
                assert abs(got - want) < 5e-6 * max(1.0, want), (b, h, got, want)


def exact_cases():
    """Equal scores over powers of two of keys: sums of powers of two."""
    minus = -math.inf
    ones, keys = torch.ones(1, 2, 8, 4), torch.ones(1, 1, 8, 4)
    yield (ones, keys, None, False, 1.0), ([[[1.0] * 8] * 2],)
    two = torch.ones(1, 1, 2, 4)
    yield (two, two, None, True, 1.0), ([[[1.5, 0.5]]],)
    # more queries than keys: the third and fourth see both
    yield (torch.ones(1, 1, 4, 4), two, None, True, 1.0), ([[[2.5, 1.5]]],)
    # fewer: keys behind the last query get nothing
    yield (two, keys, None, True, 1.0), ([[[1.5, 0.5] + [0.0] * 6]],)
    hidden = torch.zeros(1, 1, 8, 8)
    hidden[..., 4:] = minus
    hidden[:, :, 5:] = minus
    yield (ones, keys, hidden, False, 1.0), ([[[1.25] * 4 + [0.0] * 4] * 2],)
    yield (ones, keys, hidden[:, :, :1], False, 1.0), ([[[2.0] * 4 + [0.0] * 4] * 2],)
    yield (ones, keys, torch.full((1, 2, 1, 8), minus), False, 1.0), ([[[0.0] * 8] * 2],)
    yield (ones[:0], keys[:0], None, False, 1.0), ([],)
    yield (ones[:, :, :1], keys[:, :, :1], None, False, 1.0), ([[[1.0]] * 2],)
    # Longer than a block of a kernel, hidden from all but one key in each half.
    bias = torch.full((1, 1, 1, 300), minus)
    bias[..., [7, 290]] = 0.0
    sums = [0.0] * 300
    sums[7] = sums[290] = 100.0
    yield (torch.ones(1, 1, 200, 4), torch.ones(1, 1, 300, 4), bias, False, 1.0), ([[sums]],)
