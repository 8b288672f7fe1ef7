"""Bits per byte by hand, and the paired interval."""

import math

import pytest
import torch

from benchmarks.perplexity import compare, window_bits

ROWS = torch.randint(4, (24, 9), generator=torch.Generator().manual_seed(0))


def sure_of(right):
    """Predicts the byte after each of these ids with probability `right`, ids counting upwards."""

    def predict(ids):
        logits = torch.full((*ids.shape, 4), math.log((1 - right) / 3))
        return logits.scatter(-1, ((ids + 1) % 4).unsqueeze(-1), math.log(right))

    return predict


def noise(ids):
    generator = torch.Generator().manual_seed(int(ids.sum()))
    return torch.randn((*ids.shape, 4), generator=generator)


def test_bits_of_a_uniform_guess():
    bits = window_bits(lambda ids: torch.zeros(*ids.shape, 4), ROWS)
    assert bits.shape == (24,) and bits.dtype == torch.float64
    assert torch.allclose(bits, torch.full((24,), 2.0, dtype=torch.float64))


def test_bits_counted_by_hand():
    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0]])
    right, wrong = -math.log2(0.7), -math.log2(0.1)
    bits = window_bits(sure_of(0.7), rows)
    assert bits.tolist() == pytest.approx([right, (2 * right + wrong) / 3])
    assert window_bits(sure_of(0.7), rows, read=1).tolist() == pytest.approx([right, wrong])


def test_only_the_last_positions_have_to_be_answered():
    whole = window_bits(noise, ROWS, read=2, batch=1)
    part = window_bits(lambda ids: noise(ids)[:, -2:], ROWS, read=2, batch=1)
    assert torch.equal(whole, part)
    with pytest.raises(ValueError, match="logits of 2 positions came back, 8 are to be read"):
        window_bits(lambda ids: noise(ids)[:, -2:], ROWS)


@pytest.mark.parametrize("read", [0, 9])
def test_what_can_be_read(read):
    with pytest.raises(ValueError, match="allow 1 to 8"):
        window_bits(noise, ROWS, read=read)


def test_batches_do_not_matter():
    assert torch.allclose(
        window_bits(sure_of(0.4), ROWS, batch=1), window_bits(sure_of(0.4), ROWS, batch=24)
    )


def test_the_same_model_has_no_difference():
    found = compare(sure_of(0.5), sure_of(0.5), ROWS)
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert (found.windows, found.read) == (24, 8)


def test_a_worse_model_is_seen_pair_by_pair():
    rows = (torch.arange(9) + torch.arange(24)[:, None]) % 4
    found = compare(sure_of(0.9), sure_of(0.8), rows, read=3)
    expected = math.log2(0.9 / 0.8)
    assert found.difference == pytest.approx(expected)
    assert (found.low, found.high) == pytest.approx((expected, expected))
    assert found.read == 3
    assert str(found).startswith("0.3219 bits per byte, +0.1699 [")


def test_the_interval_holds_the_difference_and_is_seeded():
    found = compare(sure_of(0.25), noise, ROWS, batch=1)
    assert found.low < found.difference < found.high
    assert found == compare(sure_of(0.25), noise, ROWS, batch=1)
    assert found.variant - found.dense == pytest.approx(found.difference)
