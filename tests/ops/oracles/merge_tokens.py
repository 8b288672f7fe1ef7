"""Weighted sums over segments, one token at a time in double precision."""

from __future__ import annotations

import math

import torch

ULP = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Relative error that rounding the result (or cutting it off) may cause."""


def assert_correct(arguments, results):
    x, segment, shares, count = arguments
    out = results
    batch, tokens, width = x.shape
    assert out.dtype == x.dtype and out.shape == (batch, count, width)
    for b in range(batch):
        wanted = [[0.0] * width for _ in range(count)]
        largest = [[0.0] * width for _ in range(count)]
        for i in range(tokens):
            share, row = float(shares[b, i]), x[b, i].tolist()
            place = int(segment[b, i])
            for c in range(width):
                wanted[place][c] += share * row[c]
                largest[place][c] += abs(share * row[c])
        for place in range(count):
            for c, got in enumerate(out[b, place].tolist()):
                want, scale = wanted[place][c], largest[place][c]
                allowed = ULP[x.dtype] * abs(want) + 1e-6 * scale + 1e-7
                assert abs(got - want) <= allowed, (b, place, c, got, want)


def exact_cases():
    """Sums without rounding: powers of two; an empty segment, one for all, one each, no samples."""
    x = torch.tensor([[[4.0, 8.0], [16.0, 2.0], [1.0, -8.0]]])
    halves = torch.tensor([[0.5, 0.25, 0.5]])
    yield (x, torch.tensor([[1, 0, 1]]), halves, 3), ([[[4.0, 0.5], [2.5, 0.0], [0.0, 0.0]]],)
    yield (x, torch.tensor([[0, 0, 0]]), halves, 1), ([[[6.5, 0.5]]],)
    yield (x, torch.tensor([[2, 0, 1]]), torch.ones(1, 3), 3), (x[:, [1, 2, 0]].tolist(),)
    yield (x[:, :1], torch.tensor([[0]]), torch.ones(1, 1), 1), ([[[4.0, 8.0]]],)
    yield (x[:0], torch.zeros(0, 3, dtype=torch.int64), torch.ones(0, 3), 2), ([],)
    endless = torch.tensor([[[math.inf, 1.0], [1.0, 1.0], [3.0, 5.0]]])  # stays in its segment
    merged = [[[math.inf, 1.0], [2.0, 3.0]]]
    yield (endless, torch.tensor([[0, 1, 1]]), torch.tensor([[1.0, 0.5, 0.5]]), 2), (merged,)
    # Many tokens in few segments, longer than a block of a kernel: whole sums that bfloat16 holds.
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (2, 1100, 3), generator=generator).float()
    segment = torch.randint(0, 7, (2, 1100), generator=generator)
    wanted = [[x[b][segment[b] == place].sum(0).tolist() for place in range(7)] for b in range(2)]
    yield (x, segment, torch.ones(2, 1100), 7), (wanted,)
