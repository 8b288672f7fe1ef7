"""Packed weights: made once, shared, never stale, gone with their weights."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tokenpass.codegen.packed import PROBES, PackedWeights, probes


@pytest.fixture
def packed() -> PackedWeights:
    return PackedWeights()


def test_a_copy_is_made_once(packed: PackedWeights) -> None:
    weight = nn.Parameter(torch.randn(5, 7))
    copy = packed.transposed(weight)
    assert torch.equal(copy, weight.detach().t()) and copy.is_contiguous()
    assert packed.transposed(weight) is copy
    assert packed.transposed(weight.detach()) is copy
    assert packed.bytes == 5 * 7 * 4


def test_large_copies_are_right(packed: PackedWeights) -> None:
    weight = torch.randn(1500, 3001)
    assert torch.equal(packed.transposed(weight), weight.t())


def write_in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight[3, 2] = 9.0


def write_data(weight: nn.Parameter) -> None:
    weight.data.mul_(2.0)


def load(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))


def swap_data(weight: nn.Parameter) -> None:
    weight.data = torch.randn_like(weight)


def step(weight: nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()


@pytest.mark.parametrize("change", [write_in_place, write_data, load, swap_data, step])
def test_a_changed_weight_is_packed_anew(packed: PackedWeights, change) -> None:
    weight = nn.Parameter(torch.randn(5, 7))
    packed.transposed(weight)
    change(weight)
    assert torch.equal(packed.transposed(weight), weight.detach().t())


def test_copies_go_with_their_weights(packed: PackedWeights) -> None:
    weights = [torch.randn(8, 8) for _ in range(3)]
    for at in range(3):
        packed.transposed(weights[at])
    assert packed.bytes == 3 * 256
    del weights[1:]
    gc.collect()
    assert packed.bytes == 256


def test_new_memory_at_an_old_address_is_another_weight(packed: PackedWeights) -> None:
    for _ in range(20):
        weight = torch.randn(64, 64)
        assert torch.equal(packed.transposed(weight), weight.t())
        del weight


def test_nan_is_what_it_was(packed: PackedWeights) -> None:
    weight = torch.full((4, 4), torch.nan)
    assert packed.transposed(weight) is packed.transposed(weight)


def test_a_weight_in_that_order_needs_no_copy(packed: PackedWeights) -> None:
    weight = torch.randn(7, 5).t()
    assert packed.transposed(weight).data_ptr() == weight.data_ptr()
    assert packed.bytes == 0


def test_weights_of_inference_mode_are_refused(packed: PackedWeights) -> None:
    with torch.inference_mode():
        weight = torch.randn(4, 4)
    with pytest.raises(RuntimeError, match="version counter"):
        packed.transposed(weight)


@given(st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_probes_lie_in_the_weight(rows: int, columns: int, turned: bool) -> None:
    weight = torch.arange(float(rows * columns)).reshape(rows, columns)
    weight = weight.t() if turned else weight
    found = probes(weight)
    assert 1 <= len(found) <= PROBES
    assert torch.isin(found.view(torch.float32), weight).all()
    assert len(found.unique()) == len(found)


@given(st.integers(1, PROBES), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_every_block_of_a_weight_is_probed(
    blocks: int, rows: int, columns: int, spread: bool
) -> None:
    weight = torch.arange(float(blocks * rows * columns)).reshape(blocks, rows, columns)
    if spread:  # blocks that do not adjoin
        weight = torch.stack([weight, weight], 1)[:, 0]
    found = probes(weight).view(torch.float32)
    assert len(found) <= PROBES and len(found.unique()) == len(found)
    assert set((found.long() // (rows * columns)).tolist()) == set(range(blocks))


def test_blocks_are_packed_one_below_the_other(packed: PackedWeights) -> None:
    weight = torch.randn(3, 5, 4)
    assert torch.equal(packed.transposed(weight), torch.cat([block.T for block in weight]))
    before = packed.transposed(weight)
    with torch.no_grad():
        weight[2].mul_(2)
    assert packed.transposed(weight) is not before
    assert torch.equal(packed.transposed(weight), torch.cat([block.T for block in weight]))
    turned = torch.randn(3, 4, 5).transpose(1, 2)
    assert packed.transposed(turned).data_ptr() == turned.data_ptr()
