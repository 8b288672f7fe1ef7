"""The product with listed entries, one number at a time."""

from __future__ import annotations

import torch

from tests.ops.oracle_texts import assert_close, text_value

FLOAT32 = (1,)
"""Arguments that are float32 whatever the others are."""


def product(places, kept, packed, inputs, text):
    """Nested lists [rows][outputs] from nested lists of kept values."""
    columns = packed.double()[places].T.tolist()
    return [
        [
            text_value(text, inputs, r, n, sum(v * w for v, w in zip(row, column, strict=True)))
            for n, column in enumerate(columns)
        ]
        for r, row in enumerate(kept)
    ]


def assert_correct(arguments, results):
    index, kept, count, weight, inputs, text, _ = arguments
    packed = weight.T if weight.dim() == 2 else torch.cat([block.T for block in weight])
    result = results[0] if isinstance(results, tuple) else results
    places = index[: int(count)].tolist()
    assert result.dtype == packed.dtype and result.shape == (len(kept), packed.shape[1])
    values = kept[:, : len(places)].double().tolist()
    assert_close(result, product(places, values, packed, inputs, text))


def exact_cases():
    """Whole numbers, so that nothing is rounded."""
    packed = torch.arange(12.0).reshape(4, 3)
    index, count = torch.tensor([1, 3, 99, -5], dtype=torch.int32), torch.tensor([2]).int()
    kept = torch.tensor([[2.0, 1.0, 7.0, torch.nan]])
    yield (index, kept, count, packed.T, [], "y", 1.0), ([[15.0, 18.0, 21.0]],)
    nothing = torch.tensor([0]).int()
    yield (index, kept, nothing, packed.T, [], "y", 1.0), ([[0.0, 0.0, 0.0]],)
    more = torch.tensor([[1.0, 2.0, 3.0]])
    yield (index, kept, nothing, packed.T, [more], "add(y, a0)", 1.0), ([[1.0, 2.0, 3.0]],)
    yield (index, kept, count, packed.T, [more], "add(y, a0)", 1.0), ([[16.0, 20.0, 24.0]],)
    one = (torch.tensor([0]).int(), torch.tensor([[3.0], [-1.0]]), torch.tensor([1]).int())
    yield (*one, torch.tensor([[5.0]]), [], "y", 1.0), ([[15.0], [-5.0]],)
    none = (torch.zeros(0).int(), torch.zeros(2, 0), torch.tensor([0]).int())
    yield (*none, torch.zeros(2, 0), [], "y", 1.0), ([[0.0, 0.0], [0.0, 0.0]],)
    blocks = torch.stack([packed[:2].T, packed[2:].T])  # entries 0 and 1, entries 2 and 3
    yield (index, kept, count, blocks, [], "y", 1.0), ([[15.0, 18.0, 21.0]],)
    # weights of entries that are not listed are not read
    holes = torch.ones(20, 40)
    holes[1::2] = torch.nan
    index = torch.tensor([*range(0, 20, 2), *[0] * 10], dtype=torch.int32)
    kept = torch.ones(9, 20)
    yield (index, kept, torch.tensor([10]).int(), holes.T, [], "y", 1.0), ([[10.0] * 40] * 9,)
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(-3, 4, (37, 600), generator=generator).float()
    kept = torch.randint(-2, 3, (5, 37), generator=generator).float()
    index, count = torch.arange(37, dtype=torch.int32), torch.tensor([37]).int()
    yield (index, kept, count, packed.T, [], "y", 1.0), ((kept @ packed).tolist(),)
