"""A list and a product, one number at a time."""

from __future__ import annotations

import torch

from tests.ops.oracle_texts import assert_close, listed_values, text_value

FLOAT32 = (2,)
"""Arguments that are float32 whatever the others are."""


def assert_correct(arguments, results):
    inputs, prologue, threshold, weight, extras, epilogue, _ = arguments
    result = results[0] if isinstance(results, tuple) else results
    places, kept = listed_values(inputs, prologue, threshold)
    assert result.dtype == weight.dtype and result.shape == (len(kept), weight.shape[0])
    numbers = weight.double().tolist()
    want = [
        [
            text_value(
                epilogue,
                extras,
                r,
                n,
                sum(v * row[k] for v, k in zip(values, places, strict=True)),
            )
            for n, row in enumerate(numbers)
        ]
        for r, values in enumerate(kept)
    ]
    assert_close(result, want)


def exact_cases():
    """Whole numbers, so that nothing is rounded; weights that meet zeros are not read."""
    x = torch.tensor([[1.0, -2.0, 0.0, 3.0]])
    weight = torch.tensor([[1.0, 2.0, torch.nan, 4.0], [0.0, 1.0, torch.inf, -1.0]])
    more = torch.tensor([[10.0, 20.0]])
    yield ([x], "a0", None, weight, [], "y", 1.0), ([[9.0, -5.0]],)
    yield ([x], "relu(a0)", None, weight, [more], "add(y, a0)", 1.0), ([[23.0, 17.0]],)
    yield ([x], "a0", torch.tensor([2.0]), weight, [], "y", 1.0), ([[12.0, -3.0]],)
    yield ([torch.zeros(2, 4)], "a0", None, weight, [], "y", 1.0), ([[0.0, 0.0]] * 2,)
    yield ([torch.zeros(2, 0)], "a0", None, torch.zeros(3, 0), [], "y", 1.0), ([[0.0] * 3] * 2,)
    yield ([torch.tensor([[3.0]])], "a0", None, torch.tensor([[5.0]]), [], "y", 1.0), ([[15.0]],)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (5, 137), generator=generator).float()
    weight = torch.randint(-3, 4, (600, 137), generator=generator).float()
    yield ([x], "a0", None, weight, [], "y", 1.0), ((x @ weight.T).tolist(),)
    # a long list of short rows: parts of the list have sums of their own
    x = torch.randint(-1, 2, (1, 1500), generator=generator).float()
    weight = torch.randint(-1, 2, (70, 1500), generator=generator).float()
    yield ([x], "a0", None, weight, [], "y", 1.0), ((x @ weight.T).tolist(),)
