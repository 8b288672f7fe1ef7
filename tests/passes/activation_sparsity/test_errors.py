"""Estimated errors against errors that were made."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tokenpass.passes.activation_sparsity.errors import (
    PRIOR_SENSITIVITY,
    local_error,
    measured_error,
    prior_error,
)
from tokenpass.statistics.histogram import Histogram
from tokenpass.statistics.stored import SiteStatistics

ROWS, ENTRIES, OUTPUTS = 4000, 48, 96


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(value: Tensor, kept: Tensor, weight: Tensor) -> float:
    """Relative error of a product in which entries are left out."""
    dense = value @ weight.T
    return float(((value * kept) @ weight.T - dense).norm() / dense.norm())


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return drawn(OUTPUTS, ENTRIES, seed=1) * torch.linspace(0.2, 3, ENTRIES)


@pytest.fixture(scope="module")
def value() -> Tensor:
    return drawn(ROWS, ENTRIES, seed=2) * torch.linspace(0.1, 2, ENTRIES)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.7, 1.5, 100.0])
@pytest.mark.parametrize("each", [False, True])
def test_local_error_of_independent_entries(
    value: Tensor, weight: Tensor, level: float, each: bool
) -> None:
    limits = torch.linspace(1.5, 0.5, ENTRIES) * level if each else torch.tensor([level])
    squares = torch.linalg.vector_norm(weight, dim=0).square()
    found = local_error(Histogram.of(value), squares, limits)
    assert found == pytest.approx(made(value, value.abs() > limits, weight), rel=0.05, abs=1e-6)


def test_of_fixed_sets(value: Tensor, weight: Tensor) -> None:
    limits = torch.where(torch.arange(ENTRIES) % 3 == 0, torch.inf, -1.0)
    squares = torch.linalg.vector_norm(weight, dim=0).square()
    found = local_error(Histogram.of(value), squares, limits)
    assert found == pytest.approx(made(value, limits < 0, weight), rel=0.05)


def test_of_nothing_is_nothing() -> None:
    none = Histogram.of(torch.zeros(3, ENTRIES))
    assert local_error(none, torch.ones(ENTRIES), torch.tensor([1.0])) == 0.0


@pytest.mark.parametrize("limit", [0.3, 1.0])
@pytest.mark.parametrize("fixed", [False, True])
def test_neurons_by_their_gate(weight: Tensor, limit: float, fixed: bool) -> None:
    """What is lost of a gated product, and with a set that does not look at the gate."""
    gate, up = drawn(ROWS, ENTRIES, seed=3), drawn(ROWS, ENTRIES, seed=4) + 0.5
    histograms = Histogram.of(gate * up), Histogram.of(gate), Histogram.of(up)
    known = SiteStatistics("", *histograms, sensitivity=0.5)
    limits = torch.tensor([limit])
    if fixed:
        limits = torch.where(torch.arange(ENTRIES) % 4 == 0, torch.inf, -1.0)
    norms = torch.linalg.vector_norm(weight, dim=0)
    expected = 0.5 * made(gate * up, gate.abs() > limits, weight)
    assert measured_error(known, norms, limits, by_gate=True) == pytest.approx(expected, rel=0.06)


def test_sensitivity_scales_and_has_a_prior(value: Tensor) -> None:
    norms, limits = torch.ones(ENTRIES), torch.tensor([0.5])
    magnitude = Histogram.of(value)
    local = local_error(magnitude, norms, limits)
    measured = SiteStatistics("", magnitude, sensitivity=0.125)
    assert measured_error(measured, norms, limits, False) == pytest.approx(0.125 * local)
    unknown = SiteStatistics("", magnitude)
    assert measured_error(unknown, norms, limits, False) == pytest.approx(PRIOR_SENSITIVITY * local)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.99])
def test_the_prior_is_that_of_normal_entries(share: float) -> None:
    value = drawn(200_000, seed=5)
    bound = value.abs().quantile(share)
    lost = float((value[value.abs() <= bound].square().sum() / value.square().sum()).sqrt())
    assert prior_error(share, False) == pytest.approx(PRIOR_SENSITIVITY * lost, rel=0.05, abs=1e-3)


def test_the_prior_at_its_ends_and_between() -> None:
    assert prior_error(0.0, False) == 0.0 and prior_error(1.0, False) == PRIOR_SENSITIVITY
    assert prior_error(1.0, True) == 1.0 > PRIOR_SENSITIVITY
    errors = [prior_error(at / 50, False) for at in range(51)]
    assert errors == sorted(errors) and all(math.isfinite(error) for error in errors)
