"""Which entries count in a plan's reference."""

from __future__ import annotations

import math

import pytest
import torch

from tokenpass.ops import mask_compact
from tokenpass.reference.facts import MaskFacts
from tokenpass.reference.masks import masked_entries

ROWS = torch.tensor([[3.0, -1.0, 0.5, -4.0], [0.2, 5.0, -6.0, 0.1]])


def test_one_threshold_for_all_and_what_equals_it_goes() -> None:
    found = masked_entries(ROWS, MaskFacts(torch.tensor([1.0]), 0.5), [])
    assert found.tolist() == [[3.0, 0.0, 0.0, -4.0], [0.0, 5.0, -6.0, 0.0]]


def test_a_threshold_for_each_entry() -> None:
    limits = torch.tensor([math.inf, -1.0, 0.5, 5.0])
    found = masked_entries(ROWS, MaskFacts(limits, 0.5), [])
    assert found.tolist() == [[0.0, -1.0, 0.0, 0.0], [0.0, 5.0, -6.0, 0.0]]


def test_nan_counts_wherever_it_is() -> None:
    value = torch.full((1, 2), math.nan)
    found = masked_entries(value, MaskFacts(torch.tensor([math.inf, 1.0]), 0.5), [])
    assert found.isnan().all()


def test_by_the_gate_with_a_number_among_its_inputs() -> None:
    """A gate of each neuron and a scale without dimensions, as Gemma 3n has."""
    gate = torch.tensor([[[1.0, -3.0, 0.1]]])
    mask = MaskFacts(torch.tensor([1.5]), 0.5, "mul(relu(a0), a1)", ("g", "s"))
    found = masked_entries(torch.ones(1, 1, 3), mask, [gate, torch.tensor(2.0)])
    assert found.tolist() == [[[1.0, 0.0, 0.0]]]


@pytest.mark.parametrize("each_row", [False, True])
def test_the_share_that_is_smallest(each_row: bool) -> None:
    value = ROWS[:, None]
    found = masked_entries(value, MaskFacts(None, 0.5, each_row=each_row), [])
    # bounds: 1 in the first row, 0.2 in the second
    first = [3.0, 0.0, 0.0, -4.0] if each_row else [3.0, -1.0, 0.5, -4.0]
    assert found[:, 0].tolist() == [first, [0.0, 5.0, -6.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 16])
def test_as_the_operator_lists_them(dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    value = torch.randn(3, 16, generator=generator).to(dtype)
    limits = torch.rand(size, generator=generator)
    index, kept, count = mask_compact.reference([value], "a0", limits)
    listed = torch.zeros(3, 16)
    listed[:, index[: int(count)].long()] = kept[:, : int(count)]
    found = masked_entries(value, MaskFacts(limits, 0.5), [])
    assert torch.equal(found.float(), listed) and found.dtype == dtype
