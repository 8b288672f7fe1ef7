"""A gated MLP, neuron by neuron."""

from __future__ import annotations

import torch

from tests.ops.oracle_texts import assert_close, listed_values, text_value

FLOAT32 = (3,)
"""Arguments that are float32 whatever the others are."""


def assert_correct(arguments, results):
    x, inputs, text, threshold, up, bias, packed, extras, epilogue = arguments
    result = results[0] if isinstance(results, tuple) else results
    assert result.dtype == packed.dtype and result.shape == (x.shape[0], packed.shape[1])
    places, kept = listed_values(inputs, text, threshold)
    numbers, rows_up, rows_packed = (one.double().tolist() for one in (x, up, packed))
    biases = [0.0] * len(up) if bias is None else bias.double().tolist()
    want = []
    for r, row in enumerate(numbers):
        h = [
            g * (sum(a * b for a, b in zip(row, rows_up[k], strict=True)) + biases[k])
            for g, k in zip(kept[r], places, strict=True)
        ]
        down = [
            sum(v * rows_packed[k][n] for v, k in zip(h, places, strict=True))
            for n in range(packed.shape[1])
        ]
        want.append([text_value(epilogue, extras, r, n, y) for n, y in enumerate(down)])
    scale = max((abs(v) for row in want for v in row), default=0.0)
    if result.dtype == torch.float32 and scale > 10:
        exact = torch.tensor(want, dtype=torch.float64)
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=3e-6 * scale)
    else:
        assert_close(result, want)


def exact_cases():
    """Whole numbers, so that nothing is rounded."""
    gate = torch.tensor([[1.0, 0.0, -2.0, 3.0]])
    x = torch.tensor([[1.0, 2.0]])
    up = torch.tensor([[1.0, 0.0], [torch.nan, 5.0], [0.0, 1.0], [1.0, 1.0]])
    packed = torch.tensor(
        [[1.0, 2.0, 0.0], [torch.inf, 0.0, 0.0], [0.0, 1.0, 1.0], [2.0, 0.0, 1.0]]
    )
    bias = torch.tensor([1.0, 1.0, 0.0, -1.0])
    start = (x, [gate], "a0", None, up)
    yield (*start, None, packed, [], "y"), ([[19.0, -2.0, 5.0]],)
    yield (*start, bias, packed, [], "y"), ([[14.0, 0.0, 2.0]],)
    yield (x, [gate], "relu(a0)", None, up, None, packed, [], "y"), ([[19.0, 2.0, 9.0]],)
    limit = torch.tensor([2.0])
    more = torch.tensor(
        [
            [1.0],
        ]
    )
    yield (x, [gate], "a0", limit, up, None, packed, [more], "add(y, a0)"), ([[19.0, 1.0, 10.0]],)
    zero = torch.zeros(1, 4)
    yield (x, [zero], "a0", None, up, bias, packed, [], "y"), ([[0.0, 0.0, 0.0]],)
    none = (torch.ones(2, 3), [torch.zeros(2, 0)], "a0", None, torch.zeros(0, 3), None)
    yield (*none, torch.zeros(0, 2), [], "y"), ([[0.0, 0.0], [0.0, 0.0]],)
    one = torch.tensor([[2.0]])
    yield (one, [one], "a0", None, one, None, one, [], "y"), ([[16.0]],)
    generator = torch.Generator().manual_seed(0)

    def whole(*shape):
        return torch.randint(-1, 2, shape, generator=generator).float()

    x, gate, up, packed = whole(9, 20), whole(9, 50), whole(50, 20), whole(50, 70)
    want = (gate * (x @ up.T)) @ packed
    yield (x, [gate], "a0", None, up, None, packed, [], "y"), (want.tolist(),)
