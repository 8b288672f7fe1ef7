"""Tokens by index, one at a time."""

from __future__ import annotations

import math

import torch


def assert_correct(arguments, results):
    x, index = arguments
    out = results
    assert out.dtype == x.dtype
    assert out.shape == (x.shape[0], index.shape[1], x.shape[2])
    for b in range(x.shape[0]):
        for j, place in enumerate(index[b % index.shape[0]].tolist()):
            assert out[b, j].tolist() == x[b, place].tolist()


def exact_cases():
    """Copies are exact: repeated and reversed entries, one index for all, infinities."""
    x = torch.tensor(
        [[[1.0, 2.0], [3.0, -math.inf], [5.0, 6.0]], [[0.5, 0.25], [9.0, 8.0], [7.0, 4.0]]]
    )
    one, two, three = x[0].tolist()
    first, second, third = x[1].tolist()
    each = torch.tensor([[2, 0, 2, 1], [0, 0, 1, 2]])
    yield (x, each), ([[three, one, three, two], [first, first, second, third]],)
    yield (x, torch.tensor([[1]])), ([[two], [second]],)
    yield (x, torch.zeros(2, 0, dtype=torch.int64)), ([[], []],)
    yield (x[:0], torch.tensor([[1, 0]])), ([],)
    yield (x[:, :1], torch.tensor([[0]])), ([[one], [first]],)
