"""Histograms against exact computation, on random and on hostile values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenpass.errors import InternalError
from tokenpass.statistics.histogram import BINS, HIGHEST, LOWEST, Histogram

WIDTH = 1.2501
"""The widest bin: how far a single value can be told from another."""


def made(kind: str) -> Tensor:
    torch.manual_seed(0)
    match kind:
        case "normal":
            return torch.randn(4000, 5) * torch.tensor([1e-3, 0.1, 1.0, 30.0, 1000.0])
        case "skewed":
            return torch.randn(4000, 5).exp() * 0.01
        case "heavy":
            return torch.distributions.StudentT(3.0).sample((4000, 5))
        case "bfloat16":
            return torch.randn(4000, 5).bfloat16()
        case "constant":
            return torch.full((300, 4), 1.0) * torch.tensor([1.0, -1.2, 0.3, 7.7])
        case "relu":
            return torch.randn(4000, 5).relu()
        case "one row":
            return torch.tensor([[0.1, -3.0, 1.0, 0.0]])
    raise ValueError(kind)


SMOOTH = ("normal", "skewed", "heavy", "bfloat16", "relu")
ALL = (*SMOOTH, "constant", "one row")


@pytest.mark.parametrize("kind", ALL)
def test_bounds_of_a_bin_hold_for_everything(kind: str) -> None:
    values = made(kind)
    size, found = values.double().abs(), Histogram.of(values)
    torch.testing.assert_close(found.mean(), size.mean(0), rtol=0.25, atol=1e-6)
    torch.testing.assert_close(found.energy(), size.square().mean(0), rtol=0.4, atol=1e-6)
    for share in (0.05, 0.5, 0.9, 1.0):
        at = found.quantile(share)
        assert ((size <= at * WIDTH + 1e-7).double().mean(0) >= share - 1e-9).all()
        assert ((size * WIDTH < at).double().mean(0) <= share + 1e-9).all()
    for threshold in (0.0, 1e-4, 0.25, 1.0, 5.0, 1e6):
        share = found.share_below(threshold)
        assert (share <= (size <= threshold * WIDTH + 1e-7).double().mean(0) + 1e-9).all()
        assert (share >= (size * WIDTH <= threshold).double().mean(0) - 1e-9).all()
        energy = found.energy_below(threshold)
        kept = torch.where(size <= threshold * WIDTH, size, 0.0).square().mean(0)
        assert (energy <= kept * WIDTH**2 + 1e-9).all()
        kept = torch.where(size * WIDTH <= threshold, size, 0.0).square().mean(0)
        assert (energy >= kept / WIDTH**2 - 1e-9).all()


@pytest.mark.parametrize("kind", SMOOTH)
def test_smooth_values_are_told_to_a_few_percent(kind: str) -> None:
    values = made(kind)
    size, found = values.double().abs(), Histogram.of(values)
    torch.testing.assert_close(found.mean(), size.mean(0), rtol=0.02, atol=0)
    torch.testing.assert_close(found.energy(), size.square().mean(0), rtol=0.04, atol=0)
    for share in (0.55, 0.7, 0.9):
        exact = size.quantile(share, dim=0)
        torch.testing.assert_close(found.quantile(share), exact, rtol=0.05, atol=0)
        told = found.share_below(exact)
        torch.testing.assert_close(told, torch.full_like(told, share), rtol=0, atol=0.012)
        below = torch.where(size <= exact, size, 0.0).square().mean(0)
        torch.testing.assert_close(found.energy_below(exact), below, rtol=0.1, atol=0)


def test_thresholds_and_shares_of_each_channel() -> None:
    found = Histogram.of(made("normal"))
    shares = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    at = found.quantile(shares)
    torch.testing.assert_close(found.share_below(at), shares.double(), rtol=0, atol=1e-6)
    one = found.share_below(torch.tensor([0.5]))
    torch.testing.assert_close(one, found.share_below(0.5))
    for channel in range(5):
        alone = Histogram.of(made("normal")[:, channel : channel + 1])
        assert float(alone.quantile(0.7)) == float(found.quantile(0.7)[channel])


def test_zeros_are_below_every_threshold() -> None:
    found = Histogram.of(torch.tensor([[0.0, -0.0, 1e-9]] * 3))
    assert found.share_below(0.0).tolist() == [1.0, 1.0, 1.0]
    assert found.quantile(1.0).tolist() == [0.0, 0.0, 0.0]
    assert found.energy().tolist() == found.mean().tolist() == [0.0, 0.0, 0.0]
    assert found.share_below(-1.0).tolist() == [0.0, 0.0, 0.0]


def test_no_rows() -> None:
    found = Histogram.of(torch.zeros(0, 3))
    assert found.rows == 0 and found == Histogram.empty(3)
    for value in (found.energy(), found.mean(), found.quantile(0.5), found.share_below(1.0)):
        assert value.tolist() == [0.0, 0.0, 0.0]
    assert (found + Histogram.of(torch.ones(2, 3))).rows == 2


def test_what_is_too_large_is_counted_in_the_last_bin() -> None:
    found = Histogram.of(torch.tensor([[3e38], [2.0**HIGHEST], [1.0]]))
    assert int(found.counts[BINS - 1]) == 2
    assert float(found.share_below(2.0**15)) == pytest.approx(1 / 3)
    assert int(Histogram.of(torch.tensor([[2.0**LOWEST]])).counts[1]) == 1


def test_what_is_no_finite_number_is_counted_apart() -> None:
    nan, inf = float("nan"), float("inf")
    found = Histogram.of(torch.tensor([[nan, 1.0], [inf, 1.0], [-inf, 1.0], [2.0, 1.0]]))
    assert found.not_finite.tolist() == [3, 0] and found.rows == 4
    alone = Histogram.of(torch.tensor([[2.0]]))
    assert float(found.energy()[0]) == float(alone.energy())
    assert found.pooled().not_finite.tolist() == [3] and found.pooled().rows == 8


def test_all_channels_together() -> None:
    values = made("normal")
    assert Histogram.of(values).pooled() == Histogram.of(values.reshape(-1, 1))


@given(
    st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=0, max_size=12),
    st.integers(0, 12),
)
def test_any_split_in_any_order_gives_the_same(rows: list[list[float]], cut: int) -> None:
    values = torch.tensor(rows, dtype=torch.float32).view(-1, 3)
    whole = Histogram.of(values)
    parts = Histogram.of(values[:cut]), Histogram.of(values[cut:])
    assert whole == parts[0] + parts[1] == parts[1] + parts[0]
    assert whole == Histogram.of(values.flip(0))
    assert whole.rows == len(rows)


@given(st.lists(st.floats(0, 2.0**15, width=32), min_size=1, max_size=20), st.floats(0, 1))
def test_a_share_and_its_quantile_agree(values: list[float], share: float) -> None:
    found = Histogram.of(torch.tensor(values)[:, None])
    assert float(found.share_below(found.quantile(share))) >= share - 1e-9
    more = found.quantile(share) * 1.5
    assert float(found.energy_below(more)) <= float(found.energy()) * (1 + 1e-9)


def test_halves_are_counted_as_their_float32() -> None:
    values = made("normal")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert Histogram.of(values.to(dtype)) == Histogram.of(values.to(dtype).float())


def test_wrong_shapes_are_defects() -> None:
    with pytest.raises(InternalError, match="rows, channels"):
        Histogram.of(torch.zeros(3))
    with pytest.raises(InternalError, match="2 and of 3 channels"):
        _ = Histogram.empty(2) + Histogram.empty(3)
    with pytest.raises(InternalError, match="int64"):
        Histogram(torch.zeros(BINS, 2), torch.zeros(2, dtype=torch.int64))
