"""What `tokenpass::bipartite_match` must give, found the slow and obvious way."""

from __future__ import annotations

import math

import torch


def assert_correct(arguments, results):
    """Every score is the best similarity (python loops, float64), every partner reaches it."""
    keys, blocked_source, blocked_target = arguments
    score, partner = results
    batch, tokens, _ = keys.shape
    assert score.shape == partner.shape == (batch, math.ceil(tokens / 2))
    assert score.dtype == torch.float32 and partner.dtype == torch.int64
    for b in range(batch):
        rows = [[float(x) for x in token] for token in keys[b]]
        targets = rows[1::2]
        for i, source in enumerate(rows[0::2]):
            allowed = [
                j for j in range(len(targets)) if blocked_target is None or not blocked_target[b, j]
            ]
            got, at = float(score[b, i]), int(partner[b, i])
            best = max((cosine(source, targets[j]) for j in allowed), default=-math.inf)
            if blocked_source is not None and blocked_source[b, i]:
                assert got == -math.inf
            else:
                assert got == best or abs(got - best) < 2e-6, (b, i, got, best)
            if not allowed:
                assert at == 0
            else:
                assert at in allowed, (b, i, at)
                assert cosine(source, targets[at]) > best - 2e-6, (b, i, at)


def cosine(left, right):
    """Cosine similarity of two lists of numbers, 0 where one is all zeros."""
    norms = math.sqrt(sum(x * x for x in left)) * math.sqrt(sum(x * x for x in right))
    return sum(x * y for x, y in zip(left, right, strict=True)) / norms if norms else 0.0


def exact_cases():
    """Arguments with the only right results: no rounding anywhere, ties included."""
    minus = -math.inf
    one, two = [1.0, 0.0], [0.0, 1.0]
    four = torch.tensor([[one, two, two, one, one, one, two]])
    yield (four, None, None), ([[1.0, 1.0, 1.0, 1.0]], [[1, 0, 1, 0]])
    first = torch.tensor([[False, True, False]])
    yield (four, None, first), ([[1.0, 1.0, 1.0, 1.0]], [[2, 0, 2, 0]])
    every = torch.tensor([[True, True, True]])
    yield (four, None, every), ([[minus] * 4], [[0] * 4])
    some = torch.tensor([[True, False, False, True]])
    yield (four, some, None), ([[minus, 1.0, 1.0, minus]], [[1, 0, 1, 0]])
    yield (torch.zeros(1, 6, 3), None, None), ([[0.0] * 3], [[0] * 3])
    yield (torch.ones(2, 1, 4), None, None), ([[minus], [minus]], [[0], [0]])
    # Signs over 16 channels: every norm is 4, every similarity a multiple of 1/8, ties abound
    # and must go to the lowest target also across blocks of a kernel.
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (2, 301, 16), generator=generator).float() * 2 - 1
    products = (signs[:, 0::2, None] * signs[:, None, 1::2]).sum(-1) / 16
    best = products.amax(-1)
    lowest = [
        [next(j for j, x in enumerate(row) if x == max(row)) for row in sample]
        for sample in products.tolist()
    ]
    yield (signs, None, None), (best.tolist(), lowest)
