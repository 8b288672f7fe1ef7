"""The listed rows' products, one number at a time."""

from __future__ import annotations

import torch

from tests.ops.oracle_texts import assert_close, text_value


def visible(arguments, results):
    """What lies within the list."""
    result = results[0] if isinstance(results, tuple) else results
    return (result[:, : int(arguments[2])],)


def products(x, places, weight, inputs, text):
    """Nested lists [rows][listed]."""
    numbers, weights = x.double().tolist(), weight.double().tolist()
    return [
        [
            text_value(text, inputs, r, k, sum(a * b for a, b in zip(row, weights[k], strict=True)))
            for k in places
        ]
        for r, row in enumerate(numbers)
    ]


def assert_correct(arguments, results):
    x, index, count, weight, inputs, text, *_ = arguments
    whole = results[0] if isinstance(results, tuple) else results
    assert whole.dtype == torch.float32 and whole.shape == (x.shape[0], weight.shape[0])
    places = index[: int(count)].tolist()
    assert_close(visible(arguments, results)[0], products(x, places, weight, inputs, text))


def exact_cases():
    """Whole numbers, so that nothing is rounded."""
    weight = torch.arange(12.0).reshape(4, 3)
    index, count = torch.tensor([1, 3, 99, -5], dtype=torch.int32), torch.tensor([2]).int()
    x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    yield (x, index, count, weight, [], "y"), ([[13.0, 31.0], [4.0, 10.0]],)
    yield (x, index, torch.tensor([0]).int(), weight, [], "y"), ([[], []],)
    gate = torch.tensor([[9.0, 1.0, 9.0, -2.0]])
    yield (x, index, count, weight, [gate], "add(y, a0)"), ([[14.0, 29.0], [5.0, 8.0]],)
    column = torch.tensor([[1.0], [2.0]])
    yield (x, index, count, weight, [column], "add(y, a0)"), ([[14.0, 32.0], [6.0, 12.0]],)
    both = [gate, gate]
    yield (x, index, count, weight, both, "mul(y, relu(a1))"), ([[13.0, 0.0], [4.0, 0.0]],)
    one = (torch.tensor([0]).int(), torch.tensor([1]).int())
    yield (torch.tensor([[3.0]]), *one, torch.tensor([[5.0]]), [], "y"), ([[15.0]],)
    none = (torch.zeros(0).int(), torch.tensor([0]).int())
    yield (torch.ones(2, 3), *none, torch.zeros(0, 3), [], "y"), ([[], []],)
    yield (torch.zeros(2, 0), *one, torch.zeros(1, 0), [], "y"), ([[0.0], [0.0]],)
    holes = torch.ones(40, 21)
    holes[1::2] = torch.nan
    index = torch.tensor([*range(0, 40, 2), *[1] * 20], dtype=torch.int32)
    x = torch.ones(9, 21)
    yield (x, index, torch.tensor([20]).int(), holes, [], "y"), ([[21.0] * 20] * 9,)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-3, 4, (37, 300), generator=generator).float()
    x = torch.randint(-1, 2, (5, 300), generator=generator).float()
    index, count = torch.arange(37, dtype=torch.int32), torch.tensor([37]).int()
    yield (x, index, count, weight, [], "y"), ((x @ weight.T).tolist(),)
