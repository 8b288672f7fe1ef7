"""The stopwatch on calls whose times are known, and the tables made of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from tokenpass.cost import measure as stopwatch
from tokenpass.cost.measure_cases import Case, element_cases, shape_cases, stream_cases
from tokenpass.errors import UserError


def test_bad_requests():
    with pytest.raises(UserError, match="cpu or cuda"):
        stopwatch.measure("meta")
    for seconds in (0, -1, float("nan")):
        with pytest.raises(UserError, match="seconds"):
            stopwatch.measure("cpu", seconds=seconds)


def test_fastest_sample_counts_and_progress_ends_at_one(monkeypatch):
    clock = itertools.count()
    delays = iter([5.0, 1.0, 3.0] + [9.0] * 100)
    now = [0.0]

    def call():
        next(clock)
        now[0] += next(delays)

    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    shares: list[float] = []
    fastest = stopwatch._fastest(
        [Case("gemm", (1,), 1.0, call)],
        torch.device("cpu"),
        9.0,
        lambda share, _: shares.append(share),
    )
    assert fastest == [1.0]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_larger_work_bounds_the_time_of_smaller(monkeypatch):
    """A point that was disturbed is no slower than a point that does more."""
    measured = {(1,): (1e9, 8.0), (2,): (2e9, 4.0), (4,): (4e9, 16.0)}
    table = stopwatch._table({"m": (1, 2, 4)}, measured)
    assert table.values == (0.25, 0.5, 0.25)


def test_points_too_large_to_time_are_saturated():
    measured = {(1, 8): (1e9, 1.0), (1, 64): (8e9, 4.0), (2, 8): (2e9, 1.0)}
    table = stopwatch._table({"m": (1, 2), "n": (8, 64)}, measured)
    assert table.values == (1.0, 2.0, 2.0, 2.0)


def test_cases_cover_every_table_and_run():
    cases = [
        *shape_cases(torch.device("cpu"), torch.float32),
        *element_cases(torch.device("cpu")),
        *itertools.islice(stream_cases(torch.device("cpu")), 2),
    ]
    tables = {case.table for case in cases}
    assert tables >= {*stopwatch.SHAPE_AXES, *stopwatch.ELEMENT_WORK, "bandwidth", "launch", "call"}
    small: dict[str, Case] = {}
    for case in cases:
        small.setdefault(case.table, case)
    for case in small.values():
        assert case.work > 0
        case.call()


@pytest.mark.slow
def test_measure_on_this_cpu():
    profile = stopwatch.measure("cpu", seconds=5)
    assert profile.kind == "cpu" and profile.fingerprint
    assert min(profile.gemm_gflop_per_s["float32"].values) > 0
