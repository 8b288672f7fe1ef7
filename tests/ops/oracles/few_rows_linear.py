"""A product with texts before and behind it, one number at a time."""

from __future__ import annotations

import torch

from tests.ops.oracle_texts import assert_close, text_value


def assert_correct(arguments, results):
    inputs, prologue, weight, extras, epilogue = arguments
    result = results[0] if isinstance(results, tuple) else results
    rows = max(one.shape[0] for one in inputs)
    assert result.dtype == weight.dtype and result.shape == (rows, weight.shape[0])
    numbers = weight.double().tolist()
    want = []
    for r in range(rows):
        x = [text_value(prologue, inputs, r, k) for k in range(weight.shape[1])]
        y = [sum(a * b for a, b in zip(x, row, strict=True)) for row in numbers]
        want.append([text_value(epilogue, extras, r, n, value) for n, value in enumerate(y)])
    assert_close(result, want)


def exact_cases():
    """Whole numbers, so that nothing is rounded."""
    x = torch.tensor([[1.0, -2.0, 3.0]])
    weight = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]])
    more = torch.tensor([[10.0, 20.0]])
    yield ([x], "a0", weight, [], "y"), ([[-3.0, 4.0]],)
    yield ([x], "relu(a0)", weight, [more], "add(y, a0)"), ([[11.0, 26.0]],)
    yield ([x, x], "mul(a0, a1)", weight, [], "relu(y)"), ([[9.0, 22.0]],)
    yield ([torch.zeros(2, 0)], "a0", torch.zeros(3, 0), [], "y"), ([[0.0] * 3] * 2,)
    yield ([torch.tensor([[3.0]])], "a0", torch.tensor([[5.0]]), [], "y"), ([[15.0]],)
    yield ([x], "a0", torch.zeros(0, 3), [], "y"), ([[]],)
    generator = torch.Generator().manual_seed(0)
    for rows, width, outputs in ((1, 137, 50), (2, 64, 33), (7, 65, 19), (11, 40, 8)):
        x = torch.randint(-2, 3, (rows, width), generator=generator).float()
        weight = torch.randint(-3, 4, (outputs, width), generator=generator).float()
        yield ([x], "a0", weight, [], "y"), ((x @ weight.T).tolist(),)
