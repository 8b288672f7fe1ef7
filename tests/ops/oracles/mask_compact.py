"""Which entries are listed, one at a time."""

from __future__ import annotations

import torch

from tests.ops.oracle_texts import assert_close, listed_values

FLOAT32 = (2,)
"""Arguments that are float32 whatever the others are."""


def visible(arguments, results):
    """What lies within the list."""
    index, kept, count = results
    return index[: int(count)], kept[:, : int(count)], count


def assert_correct(arguments, results):
    inputs, text, threshold = arguments
    index, kept, count = results
    places, values = listed_values(inputs, text, threshold)
    assert index.dtype == count.dtype == torch.int32 and kept.dtype == torch.float32
    assert kept.shape == (len(values), len(index)) and count.shape == (1,)
    index, kept, count = visible(arguments, results)
    assert count.tolist() == [len(places)] and index.tolist() == places
    assert_close(kept, values)


def exact_cases():
    """Arguments with the only right results within the list."""
    x = torch.tensor([[0.0, 2.0, -1.0, 0.0, 4.0]])
    yield ([x], "a0", None), ([1, 2, 4], [[2.0, -1.0, 4.0]], [3])
    yield ([x], "relu(a0)", None), ([1, 4], [[2.0, 4.0]], [2])
    yield ([x], "a0", torch.tensor([1.0])), ([1, 4], [[2.0, 4.0]], [2])  # not at the threshold
    limits = torch.tensor([0.0, 3.0, 0.5, 0.0, 4.0])
    yield ([x], "a0", limits), ([2], [[-1.0]], [1])
    yield ([torch.zeros(2, 40)], "a0", None), ([], [[], []], [0])
    yield ([torch.zeros(3, 0)], "a0", None), ([], [[], [], []], [0])
    wide = (torch.arange(300.0) % 3)[None]
    places = [k for k in range(300) if k % 3]
    yield ([wide], "a0", None), (places, [[float(k % 3) for k in places]], [200])
    wide = torch.ones(9, 33)
    yield ([wide], "a0", None), (list(range(33)), wide.tolist(), [33])
    # an entry of one row is listed for all, and 0 where it is below the threshold
    two = torch.tensor([[3.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    yield ([two], "a0", torch.tensor([2.0])), ([0], [[3.0], [0.0]], [1])
    yield ([two], "a0", None), ([0, 2], [[3.0, 1.0], [1.0, 0.0]], [2])
    by_row, by_column = torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0, 0.0, 0.5]])
    text = "mul(square(relu(a0)), a1)"
    yield ([two, by_column], text, None), ([0, 2], [[9.0, 0.5], [1.0, 0.0]], [2])
    yield ([by_row, by_column], text, None), ([0, 2], [[4.0, 2.0], [0.0, 0.0]], [2])
