"""Greedy max-min selection, checked step by step in double precision."""

from __future__ import annotations

import itertools
import math

import torch


def distance(left, right):
    """Euclidean distance of two lists of numbers."""
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(left, right, strict=True)))


def assert_correct(arguments, results):
    """Every choice is as far from the earlier ones as any token left, and the lowest such one."""
    x, count, first, sizes = arguments
    index = results
    batch, tokens, _ = x.shape
    assert index.dtype == torch.int64 and index.shape == (batch, count)
    for b in range(batch):
        rows, chosen = x[b].tolist(), index[b].tolist()
        if not chosen:
            continue
        assert chosen[0] == first[b % len(first)]
        left = set(range(tokens)) - {chosen[0]}
        nearest = [math.inf] * tokens
        for before, at in itertools.pairwise(chosen):
            nearest = [
                min(d, distance(row, rows[before])) for d, row in zip(nearest, rows, strict=True)
            ]
            real = {i for i in left if sizes is None or sizes[b, i] > 0}
            assert at in left, (b, at)
            left.discard(at)
            if not real:
                assert at == min(left | {at}), "padding in order"
                continue
            farthest = max(nearest[i] for i in real)
            assert at in real and nearest[at] >= farthest - 1e-5, (b, at, nearest[at], farthest)
            if (x[b] == x[b].round()).all():  # squares of small whole numbers: ties are ties
                assert at == min(i for i in real if nearest[i] == farthest), (b, at)


def exact_cases():
    """Whole numbers on a line, ties, equal tokens, padding, all of them."""
    line = torch.tensor([[[0.0], [1.0], [2.0], [3.0], [4.0]]])
    start = torch.tensor([0])
    yield (line, 5, start, None), ([[0, 4, 2, 1, 3]],)
    yield (line, 3, torch.tensor([2]), None), ([[2, 0, 4]],)
    yield (line, 1, torch.tensor([3]), None), ([[3]],)
    yield (line, 0, start, None), ([[]],)
    yield (line[:0], 2, start, None), ([],)
    yield (line[:, :1], 1, start, None), ([[0]],)
    padded = torch.tensor([[1.0, 1.0, 0.0, 2.0, 0.0]])
    yield (line, 5, start, padded), ([[0, 3, 1, 2, 4]],)
    equal = torch.ones(2, 4, 3)
    yield (equal, 4, torch.tensor([1, 3]), None), ([[1, 0, 2, 3], [3, 0, 1, 2]],)
    # Corners of a square, far apart in a long list: ties go to the lowest, across blocks.
    square = torch.zeros(1, 600, 2)
    square[0, 100], square[0, 300], square[0, 599] = (
        torch.tensor([0.0, 8.0]),
        torch.tensor([8.0, 0.0]),
        torch.tensor([8.0, 8.0]),
    )
    yield (square, 4, start, None), ([[0, 599, 100, 300]],)
    nan = torch.tensor([[[0.0], [1.0], [math.nan], [5.0]]])
    yield (nan, 4, start, None), ([[0, 2, 3, 1]],)
