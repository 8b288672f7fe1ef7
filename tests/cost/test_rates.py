"""Interpolation between measured rates."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tokenpass.cost.rates import RateTable

GRID = RateTable(axes={"m": (1, 10, 100), "n": (4, 64)}, values=(1, 2, 10, 20, 50, 60))


def test_grid_points_are_exact():
    rate = GRID.interpolator()
    for m, row in zip((1, 10, 100), ((1, 2), (10, 20), (50, 60)), strict=True):
        for n, expected in zip((4, 64), row, strict=True):
            assert rate((m, n)) == pytest.approx(expected)


def test_between_points_it_is_a_power_law():
    rate = GRID.interpolator()
    assert rate((math.sqrt(10), 4)) == pytest.approx(math.sqrt(1 * 10))
    assert rate((1, 16)) == pytest.approx(math.sqrt(1 * 2))


def test_edges_hold_outside_the_grid():
    rate = GRID.interpolator()
    assert rate((1e6, 1e6)) == pytest.approx(60)
    assert rate((0, 1)) == pytest.approx(1)
    assert rate((1e6, 16)) == pytest.approx(math.sqrt(50 * 60))


@given(st.floats(0.1, 1e5), st.floats(0.1, 1e5))
def test_rates_stay_between_the_measured_ones(m, n):
    assert 1 - 1e-9 <= GRID.interpolator()((m, n)) <= 60 + 1e-9


@pytest.mark.parametrize(
    ("axes", "values", "message"),
    [
        ({"m": (1, 1)}, (1, 2), "increasing"),
        ({"m": ()}, (), "increasing"),
        ({"m": (1, 2)}, (1,), "expected 2 values"),
        ({"m": (1, 2)}, (1, 0), "greater than 0"),
        ({"m": (1, 2)}, (1, float("nan")), "values.1"),
        ({"m": (-1, 2)}, (1, 2), "greater than 0"),
    ],
)
def test_bad_tables(axes, values, message):
    with pytest.raises(ValidationError, match=message):
        RateTable(axes=axes, values=values)
