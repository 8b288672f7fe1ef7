"""The cut of each row by plain sums."""

from __future__ import annotations

import math

import torch

from tests.ops.oracle_texts import assert_close


def assert_correct(arguments, results):
    x, deviations = arguments
    result = results[0] if isinstance(results, tuple) else results
    assert result.dtype == x.dtype and result.shape == x.shape
    want = []
    for row in x.double().tolist():
        mean = math.fsum(row) / len(row) if row else 0.0
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in row) / len(row)) if row else 0.0
        want.append([max(v - (mean + deviations * deviation), 0.0) for v in row])
    assert_close(result, want)


def exact_cases():
    """Rows whose mean and deviation are whole numbers."""
    x = torch.tensor([[1.0, 3.0, 1.0, 3.0], [8.0, 8.0, 8.0, 8.0]])
    yield (x, 0.0), ([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]],)
    yield (x, -1.0), ([[0.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]],)
    yield (x, 0.5), ([[0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]],)
    yield (torch.tensor([[5.0], [-1.0]]), 1.0), ([[0.0], [0.0]],)
    yield (torch.zeros(0, 3), 1.0), ([],)
    yield (torch.zeros(2, 0), 1.0), ([[], []],)
    wide = torch.tensor([[0.0, 4.0]]).repeat(3, 64)
    yield (wide, 0.0), (torch.tensor([[0.0, 2.0]]).repeat(3, 64).tolist(),)
