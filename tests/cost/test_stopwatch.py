"""The stopwatch on calls whose times are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tokenpass.cost import stopwatch
from tokenpass.cost.measure_cases import Case


class FakeTime:
    """A clock that only the timed calls move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def call(self, delays: Iterator[float]):
        def run() -> None:
            self.now += next(delays)

        return run


@pytest.fixture
def fake_time(monkeypatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(stopwatch, "time", fake)
    return fake


def forever(*delays: float) -> Iterator[float]:
    yield from delays
    while True:
        yield delays[-1]


def test_fastest_sample_counts(fake_time):
    shares: list[float] = []
    cases = [Case("gemm", (1,), 1.0, fake_time.call(forever(5.0, 1.0, 3.0, 9.0)))]
    best = stopwatch.fastest(
        cases, 20.0, lambda share, _: shares.append(share), fake_time.perf_counter
    )
    assert best == [1.0]
    assert shares == sorted(shares) and shares[-1] <= 1.0


def test_two_rounds_are_made_even_without_time(fake_time):
    cases = [Case("gemm", (1,), 1.0, fake_time.call(forever(5.0, 4.0, 1.0)))]
    assert stopwatch.fastest(cases, 1.0, lambda *_: None, fake_time.perf_counter) == [4.0]


def test_warm_calls_run_once_untimed(fake_time):
    cases = [Case("special", (), 1.0, fake_time.call(forever(50.0, 1.0)), warm=True)]
    assert stopwatch.fastest(cases, 1.0, lambda *_: None, fake_time.perf_counter) == [1.0]


def test_gains_wait_for_an_undisturbed_call(fake_time, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    probes = [
        Case("gemm", (1,), 1.0, fake_time.call(forever(40.0, 30.0, 5.0))),  # twice as fast
        Case("gemm", (2,), 1.0, fake_time.call(forever(40.0, 8.0))),  # 10 / 8
        Case("gemm", (3,), 1.0, fake_time.call(forever(40.0, 20.0))),  # never undisturbed
        Case("gemm", (4,), 1.0, fake_time.call(forever(4.0))),  # better than threads allow
    ]
    gains = stopwatch.thread_gains(probes, [10.0] * 4, 300.0, lambda *_: None)
    assert gains == [2.0, 1.25, 1.0, 2.0]


def test_one_thread_is_undone():
    before = torch.get_num_threads()
    with stopwatch.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
