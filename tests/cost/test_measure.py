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
from tokenpass.lower import kernel_cases


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


def test_kernels_of_our_own_fill_their_tables():
    """What is measured of them: bytes over seconds by rows and dtype, and a launch."""
    measured = {
        ("few_rows", "float32"): {(8,): (16e9, 4.0), (1,): (16e9, 1.0)},
        ("few_rows", "bfloat16"): {(1,): (8e9, 1.0)},
        ("gemm", "float32"): {(1, 1, 1): (1.0, 1.0)},
    }
    found = measuring._weights(measured)
    assert set(found) == {"few_rows"} and set(found["few_rows"]) == {"float32", "bfloat16"}
    table = found["few_rows"]["float32"]
    assert table.axes == {"rows": (1.0, 8.0)} and table.values == (16.0, 4.0)


def test_kernel_cases_run_and_count_what_is_read(monkeypatch):
    monkeypatch.setattr(kernel_cases, "WEIGHTS", 2)
    monkeypatch.setattr(kernel_cases, "OUTPUTS", 8)
    monkeypatch.setattr(kernel_cases, "WIDTH", 64)
    monkeypatch.setattr(kernel_cases, "ROWS", (1, 3))
    monkeypatch.setattr(kernel_cases, "DTYPES", (torch.float32, torch.bfloat16))
    with torch.no_grad():
        cases = list(kernel_cases.kernel_cases(torch.device("cpu")))
        for case in cases:
            case.call()
    tables = [(case.table, case.dtype, case.point) for case in cases]
    assert len(set(tables)) == len(tables) == 9 and tables[-1][0] == "kernel_launch"
    whole = {c.dtype: c.work for c in cases if c.table == "few_rows"}
    assert whole == {"float32": 4.0 * 8 * 64, "bfloat16": 2.0 * 8 * 64}
    listed = [c.work for c in cases if c.table == "listed_rows" and c.dtype == "float32"]
    assert all(0 < work < 4 * whole["float32"] for work in listed)
    assert list(kernel_cases.kernel_cases(torch.device("cuda"))) == []
