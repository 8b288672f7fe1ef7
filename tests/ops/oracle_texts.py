"""Pointwise texts as plain functions of numbers, for the oracles; and how close results must be."""

from __future__ import annotations

import math

import torch

TEXTS = {
    "a0": lambda a, y: a[0],
    "relu(a0)": lambda a, y: max(a[0], 0.0),
    "mul(square(relu(a0)), a1)": lambda a, y: max(a[0], 0.0) ** 2 * a[1],
    "mul(silu(relu(a0)), add(a1, a2))": lambda a, y: silu(max(a[0], 0.0)) * (a[1] + a[2]),
    "y": lambda a, y: y,
    "add(y, a0)": lambda a, y: y + a[0],
    "mul(y, relu(a1))": lambda a, y: y * max(a[1], 0.0),
    "add(mul(0.5, y), mul(a0, a1))": lambda a, y: 0.5 * y + a[0] * a[1],
}

CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 3e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
}
"""For sums of up to 150 products of normal numbers, rounded once; values of a few hundred."""


def silu(x):
    return x / (1 + math.exp(-x))


def entry(matrix, row, column):
    """One number of a matrix whose rows and columns may repeat."""
    rows, columns = matrix.shape
    return float(matrix[row if rows > 1 else 0, column if columns > 1 else 0])


def text_value(text, inputs, row, column, y=None):
    """What `text` is at one place of its inputs."""
    return TEXTS[text]([entry(one, row, column) for one in inputs], y)


def assert_close(got, want):
    """`want` nested lists of float64 numbers."""
    assert tuple(got.shape) == tuple(torch.tensor(want).reshape(got.shape).shape)
    exact = torch.tensor(want, dtype=torch.float64).reshape(got.shape)
    torch.testing.assert_close(got.double(), exact, **CLOSE[got.dtype])


def listed_values(inputs, text, threshold):
    """The active entries, and each row's values of them: plain loops."""
    rows = max(one.shape[0] for one in inputs)
    columns = [one.shape[1] for one in inputs]
    entries = 0 if 0 in columns else max(columns)
    values = [[text_value(text, inputs, r, k) for k in range(entries)] for r in range(rows)]
    limits = None if threshold is None else threshold.tolist()

    def active(value, k):
        if limits is None:
            return value != 0
        return not abs(value) <= limits[k if len(limits) > 1 else 0]

    places = [k for k in range(entries) if any(active(row[k], k) for row in values)]
    kept = [[row[k] if active(row[k], k) else 0.0 for k in places] for row in values]
    return places, kept
