"""The clock: intervals that hold, looks that do not add up to false alarms, clocks that jump."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import binom

from tokenpass.check.pairs import (
    BLOCK,
    ERROR,
    LOOKS,
    Interval,
    block_of,
    interval,
    measure,
    tail,
    warm_up,
)
from tokenpass.errors import UserError

LEVEL = ERROR / len(LOOKS)


@pytest.mark.parametrize("blocks", [4, 12, 24, 48, 96, 192])
def test_the_tail_is_the_binomial_s(blocks: int) -> None:
    k = tail(blocks, LEVEL)
    assert binom.cdf(k - 1, blocks, 0.5) <= LEVEL / 2 or k == 0
    assert binom.cdf(k, blocks, 0.5) > LEVEL / 2


def test_the_first_look_can_decide() -> None:
    assert tail(LOOKS[0], LEVEL) >= 1 and tail(LOOKS[0] - 3, LEVEL) == 0
    assert interval([1.0] * 40).pairs == 40


@pytest.mark.parametrize(("pair", "block"), [(0.001, 4), (0.03, 4), (0.05, 3), (0.11, 2), (5, 1)])
def test_blocks_of_slow_pairs_are_small(pair: float, block: int) -> None:
    loaded = [(pair / 2, pair / 2)] * 7 + [(9.0, 9.0)] * 5
    assert block_of(loaded) == block


def test_a_slow_call_is_decided_early() -> None:
    machine = Machine(0, 1.3)
    slow = measure(
        lambda: machine.work(1.3), lambda: machine.work(1.0), lambda i: i.low > 1.1,
        limit=1e9, clock=machine.clock,
    )  # fmt: skip
    assert slow.interval.pairs <= LOOKS[2] and slow.stopped == "decided"


def test_too_few_pairs_bound_nothing() -> None:
    found = interval([1.1] * 8)
    assert (found.low, found.high) == (0.0, math.inf) and found.ratio == pytest.approx(1.1)
    assert found.decided(1.0) == "inconclusive"


def test_decisions() -> None:
    assert Interval(1.2, 1.1, 1.3, 48).decided(1.1) == "passed"
    assert Interval(1.2, 1.1, 1.3, 48).decided(1.31) == "failed"
    assert Interval(1.2, 1.1, 1.3, 48).decided(1.2) == "inconclusive"


class Machine:
    """Two works on a clock of its own, with load that comes and goes and outliers."""

    def __init__(self, seed: int, ratio: float, noise: float = 0.03) -> None:
        self.now, self.ratio = 0.0, ratio
        self.draw, self.noise, self.load = random.Random(seed), noise, 1.0

    def clock(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        if self.draw.random() < 0.05:
            self.load = self.draw.choice([1.0, 1.0, 1.6, 2.5])
        outlier = 3.0 if self.draw.random() < 0.02 else 1.0
        self.now += seconds * self.load * outlier * math.exp(self.draw.gauss(0, self.noise))

    def dense(self) -> None:
        self.work(0.01 * self.ratio)

    def ours(self) -> None:
        self.work(0.01)

    def verdict(self, floor: float) -> str:
        found = measure(
            self.dense,
            self.ours,
            lambda i: i.decided(floor) != "inconclusive",
            limit=1e9,
            seed=self.draw.randrange(2**30),
            clock=self.clock,
        )
        return found.interval.decided(floor)


def test_false_alarms_at_the_floor_itself() -> None:
    """The hardest case: a ratio that is the floor, looked at five times."""
    verdicts = [Machine(seed, 1.3).verdict(1.3) for seed in range(300)]
    assert verdicts.count("failed") <= 6


def test_a_slow_down_of_a_tenth_is_found() -> None:
    verdicts = [Machine(seed, 1.3 * 0.9).verdict(1.3 * 0.95) for seed in range(100)]
    assert verdicts.count("failed") >= 95
    verdicts = [Machine(seed, 1.3).verdict(1.3 * 0.95) for seed in range(100)]
    assert verdicts.count("passed") >= 95


def test_the_interval_holds_the_ratio() -> None:
    draws = np.random.default_rng(0)
    inside = 0
    for _ in range(500):
        found = interval(list(np.exp(0.2 + 0.05 * draws.standard_t(3, LOOKS[1] * BLOCK))))
        inside += found.low <= math.exp(0.2) <= found.high
    assert inside >= 495


def test_time_ends_it() -> None:
    machine = Machine(0, 1.0)
    found = measure(machine.dense, machine.ours, lambda _: False, limit=0.5, clock=machine.clock)
    assert found.stopped == "time" and 0 < found.interval.pairs < LOOKS[0] * BLOCK
    machine = Machine(0, 1.0)
    found = measure(machine.dense, machine.ours, lambda _: False, limit=1e9, clock=machine.clock)
    assert found.stopped == "looks" and found.interval.pairs == LOOKS[-1] * BLOCK


def test_a_clock_that_jumps_back_now_and_then() -> None:
    machine, draw = Machine(1, 1.3), random.Random(5)

    def clock() -> float:
        if draw.random() < 0.05:
            machine.now -= 100.0
        return machine.now

    found = measure(machine.dense, machine.ours, lambda i: i.low > 1, limit=1e9, clock=clock)
    assert found.dropped > 0 and found.interval.ratio == pytest.approx(1.3, rel=0.05)


def test_a_clock_that_stands_still() -> None:
    with pytest.raises(UserError, match="the clock went back"):
        measure(lambda: None, lambda: None, lambda _: True, limit=1e9, clock=lambda: 1.0)


def test_warming_up_ends() -> None:
    calls = []
    times = iter(range(10**6))

    def clock() -> float:
        return float(next(times)) ** 2  # never steady

    warm_up([lambda: calls.append(1)], clock)
    assert 12 <= len(calls) <= 48
