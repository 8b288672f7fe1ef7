"""The stopwatch on calls whose times are known, and the tables made of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from tokenpass.cost import measure as measuring
from tokenpass.cost.measure_cases import (
    COARSE,
    FINE,
    Case,
    element_cases,
    shape_cases,
    stream_cases,
)
from tokenpass.errors import UserError


def test_bad_requests():
    with pytest.raises(UserError, match="cpu or cuda"):
        measuring.measure("meta")
    for seconds in (0, -1, float("nan")):
        with pytest.raises(UserError, match="seconds"):
            measuring.measure("cpu", seconds=seconds)


def test_larger_work_bounds_the_time_of_smaller():
    """A point that was disturbed is no slower than a point that does more."""
    measured = {(1,): (1e9, 8.0), (2,): (2e9, 4.0), (4,): (4e9, 16.0)}
    table = measuring._table({"m": (1, 2, 4)}, measured)
    assert table.values == (0.25, 0.5, 0.25)


def test_points_too_large_to_time_are_saturated():
    measured = {(1, 8): (1e9, 1.0), (1, 64): (8e9, 4.0), (2, 8): (2e9, 1.0)}
    table = measuring._table({"m": (1, 2), "n": (8, 64)}, measured)
    assert table.values == (1.0, 2.0, 2.0, 2.0)


def test_cases_cover_every_table_and_run():
    cases = [
        *shape_cases(torch.device("cpu"), torch.float32, FINE, 1e9),
        *shape_cases(torch.device("cpu"), torch.bfloat16, COARSE, 1e9),
        *element_cases(torch.device("cpu")),
        *itertools.islice(stream_cases(torch.device("cpu")), 2),
    ]
    tables = {case.table for case in cases}
    assert tables >= {*FINE, *measuring.ELEMENT_WORK, "bandwidth", "launch", "call"}
    small: dict[tuple[str, str], Case] = {}
    for case in cases:
        small.setdefault((case.table, case.dtype), case)
    for case in small.values():
        assert case.work > 0
        case.call()


@pytest.mark.slow
def test_measure_on_this_cpu():
    profile = measuring.measure("cpu", seconds=5)
    assert profile.kind == "cpu" and profile.fingerprint
    assert min(profile.gemm_gflop_per_s["float32"].values) > 0
