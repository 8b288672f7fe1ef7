"""What `tokenpass::bipartite_match` must give, found the slow and obvious way."""

from __future__ import annotations

import math

import torch


def assert_correct(arguments, results):
    """Every score is the best similarity (python loops, float64), every partner reaches it."""
    keys, sizes, protected, heads = arguments
    score, partner = results
    batch, tokens, _ = keys.shape
    assert score.shape == partner.shape == (batch, math.ceil(tokens / 2))
    assert score.dtype == torch.float32 and partner.dtype == torch.int64
    for b in range(batch):
        rows = [[float(x) for x in token] for token in keys[b]]
        blocked = {at for at in range(tokens) if sizes is not None and sizes[b, at] == 0}
        if protected is not None:
            blocked |= set(protected[b % protected.shape[0]].tolist())
        targets = rows[1::2]
        for i, source in enumerate(rows[0::2]):
            allowed = [j for j in range(len(targets)) if 2 * j + 1 not in blocked]
            got, at = float(score[b, i]), int(partner[b, i])
            found = {j: similarity(source, targets[j], heads) for j in allowed}
            best = max(found.values(), default=-math.inf)
            if 2 * i in blocked:
                assert got == -math.inf
            else:
                assert got == best or abs(got - best) < 2e-6, (b, i, got, best)
            if not allowed:
                assert at == 0
            else:
                assert at in allowed, (b, i, at)
                assert found[at] > best - 2e-6, (b, i, at)


def similarity(left, right, heads):
    """Mean over heads of the cosines of their parts of two tokens."""
    width = len(left) // heads
    parts = [slice(head * width, (head + 1) * width) for head in range(heads)]
    return sum(cosine(left[part], right[part]) for part in parts) / heads


def cosine(left, right):
    """Cosine similarity of two lists of numbers, 0 where one is all zeros."""
    norms = math.sqrt(sum(x * x for x in left)) * math.sqrt(sum(x * x for x in right))
    return sum(x * y for x, y in zip(left, right, strict=True)) / norms if norms else 0.0


def exact_cases():
    """Arguments with the only right results: no rounding anywhere, ties included."""
    minus = -math.inf
    one, two = [1.0, 0.0], [0.0, 1.0]
    four = torch.tensor([[one, two, two, one, one, one, two]])
    yield (four, None, None, 1), ([[1.0, 1.0, 1.0, 1.0]], [[1, 0, 1, 0]])
    fourth = torch.tensor([[3]])
    yield (four, None, fourth, 1), ([[1.0, 1.0, 1.0, 1.0]], [[2, 0, 2, 0]])
    odd = torch.tensor([[1, 3, 5]])
    yield (four, None, odd, 1), ([[minus] * 4], [[0] * 4])
    padding = torch.tensor([[0.0, 1.0, 2.0, 1.0, 1.0, 1.0, 0.0]])
    yield (four, padding, None, 1), ([[minus, 1.0, 1.0, minus]], [[1, 0, 1, 0]])
    yield (four, padding, fourth, 1), ([[minus, 1.0, 1.0, minus]], [[2, 0, 2, 0]])
    # two heads of one channel: signs agree in both, in one, in none
    signs = torch.tensor([[[2.0, 4.0], [3.0, -1.0], [-1.0, -1.0], [8.0, 8.0]]])
    yield (signs, None, None, 2), ([[1.0, 0.0]], [[1, 0]])
    yield (torch.zeros(1, 6, 3), None, None, 1), ([[0.0] * 3], [[0] * 3])
    yield (torch.ones(2, 1, 4), None, None, 1), ([[minus], [minus]], [[0], [0]])
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
    yield (signs, None, None, 1), (best.tolist(), lowest)
