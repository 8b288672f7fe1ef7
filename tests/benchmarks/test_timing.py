"""Paired ratios under an injected clock: nothing here waits."""

import random
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.timing import Pace, bootstrap_interval, paired_ratio, summarise

PACE = Pace(pairs=30, least=8, seconds=1e9, width=0.0, warmup=2)


class FakeMachine:
    """A clock that advances by what the work costs, times the machine's load at that moment."""

    def __init__(self, load=lambda now: 1.0):
        self.now = 0.0
        self.load = load
        self.calls: list[str] = []

    def clock(self):
        return self.now

    def work(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += seconds * self.load(self.now)

        return run


def test_the_ratio_is_dense_over_variant():
    machine = FakeMachine()
    result = paired_ratio(
        machine.work("dense", 2.0), machine.work("variant", 1.0), pace=PACE, clock=machine.clock
    )
    assert result.speedup == pytest.approx(2.0)
    assert (result.low, result.high) == pytest.approx((2.0, 2.0))
    assert (result.dense_ms, result.variant_ms) == pytest.approx((2000.0, 1000.0))


def test_a_machine_that_slows_down_fivefold_does_not_move_the_ratio():
    machine = FakeMachine(load=lambda now: 5.0 if 20 < now < 200 else 1.0)
    result = paired_ratio(
        machine.work("dense", 1.5), machine.work("variant", 1.0), pace=PACE, clock=machine.clock
    )
    assert result.speedup == pytest.approx(1.5, rel=0.01)


def test_the_order_within_pairs_is_random_and_seeded():
    def calls(seed):
        machine = FakeMachine()
        works = machine.work("d", 1.0), machine.work("v", 1.0)
        paired_ratio(*works, pace=PACE, seed=seed, clock=machine.clock)
        return machine.calls

    timed = calls(0)[2 * PACE.warmup :]
    firsts = timed[::2]
    assert len(timed) == 2 * PACE.pairs
    assert {"d", "v"} == set(firsts)
    assert all(set(timed[i : i + 2]) == {"d", "v"} for i in range(0, len(timed), 2))
    assert calls(0) == calls(0) != calls(1)


def test_it_stops_once_the_interval_is_narrow():
    machine = FakeMachine()
    works = machine.work("d", 2.0), machine.work("v", 1.0)
    result = paired_ratio(*works, pace=replace(PACE, width=0.02), clock=machine.clock)
    assert result.pairs == PACE.least


def test_it_stops_when_the_time_is_used_but_times_the_least_pairs():
    machine = FakeMachine(load=lambda now: 1.0 + random.Random(int(now)).random())
    works = machine.work("d", 2.0), machine.work("v", 1.0)
    result = paired_ratio(*works, pace=replace(PACE, seconds=1.0), clock=machine.clock)
    assert result.pairs == PACE.least


def test_dense_against_dense_shows_the_noise_floor():
    noise = random.Random(3)
    machine = FakeMachine(load=lambda now: 1.0 + 0.1 * noise.random())
    dense = machine.work("d", 1.0)
    result = paired_ratio(dense, dense, pace=PACE, clock=machine.clock)
    assert result.low < 1.0 < result.high
    assert result.high - result.low < 0.1


def test_summary_takes_the_ratio_pair_by_pair():
    result = summarise([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert result.speedup == pytest.approx(2.0)
    assert result.pairs == 3


def test_the_bootstrap_of_a_constant_is_that_constant():
    assert bootstrap_interval([3.0] * 5, np.mean) == (3.0, 3.0)
    assert bootstrap_interval(range(9), np.median) == bootstrap_interval(range(9), np.median)
