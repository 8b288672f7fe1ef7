"""The speed gate: which ratio must be reached, what two works are timed for, and the verdict."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tokenpass.check import pairs
from tokenpass.check.baseline import MeasuredSpeed
from tokenpass.check.check_file import Gates
from tokenpass.check.outcome import Status
from tokenpass.check.pairs import Clock, Interval, Measured, Progress, Work

NARROW = 0.02
"""Where no floor decides, pairs are timed until the interval is this share of the ratio."""

NOISE_LIMIT = 1 / 3
"""The A/A run's share of the time limit, which is beside the pairs' own."""


@dataclass(frozen=True)
class Floor:
    """The ratio that must be reached, None where none is asked for, and where it is from."""

    ratio: float | None
    told: str


@dataclass(frozen=True)
class Clocked:
    """Dense beside itself, and dense beside ours."""

    noise: Interval
    measured: Measured

    @property
    def now(self) -> Interval:
        """The ratio."""
        return self.measured.interval

    @property
    def bounded(self) -> bool:
        """Whether there were pairs enough for intervals."""
        return bool(self.now.low and self.noise.low)

    @property
    def told(self) -> str:
        """The ratio in words."""
        now = self.now
        return f"{now.ratio:.3f} [{now.low:.3f}, {now.high:.3f}] of {now.pairs} pairs"


def floor_of(gates: Gates, speed: MeasuredSpeed | None, comparable: bool) -> Floor:
    """The larger of `min_speedup` and the baseline's ratio less the tolerance.

    `comparable`: the baseline's ratio is of this machine, these versions and these inputs.
    """
    floor, told = gates.min_speedup, "min_speedup"
    if speed is None:
        return Floor(floor, told)
    if not comparable:
        other = "the baseline's ratio is of another machine, version or input"
        return Floor(floor, f"{told} ({other})")
    kept = speed.speedup * (1 - gates.tolerance)
    if floor is None or kept > floor:
        return Floor(kept, f"the baseline's {speed.speedup:.3f} less {gates.tolerance:.0%}")
    return Floor(floor, told)


def clocked(
    dense: Work, ours: Work, decisive: float | None, limit: float, progress: Progress
) -> Clocked:
    """Warm up, and time both; `limit`: seconds of the pairs, those of the A/A run beside it.

    `progress` is told how many pairs there are, and how many seconds are left at most.
    """
    pairs.warm_up([dense, ours])
    first = limit * NOISE_LIMIT
    noise = beside_itself(
        dense, first, progress=lambda count, gone: progress(count, limit + first - gone)
    )
    found = until_decided(
        dense, ours, decisive, limit, progress=lambda count, gone: progress(count, limit - gone)
    )
    return Clocked(noise, found)


def beside_itself(
    dense: Work,
    limit: float,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Interval:
    """The A/A run: what this machine makes of a ratio that is 1."""
    looks = pairs.LOOKS[:1]
    found = pairs.measure(
        dense, dense, lambda _: True, limit=limit, clock=clock, progress=progress, looks=looks
    )
    return found.interval


def until_decided(
    dense: Work,
    ours: Work,
    decisive: float | None,
    limit: float,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Measured:
    """Pairs until a ratio is on one side of `decisive`; without one, until it is narrow."""

    def done(interval: Interval) -> bool:
        if decisive is None:
            return interval.width <= NARROW
        return interval.decided(decisive) != "inconclusive"

    return pairs.measure(dense, ours, done, limit=limit, seed=1, clock=clock, progress=progress)


def verdict(found: Clocked, floor: Floor) -> tuple[Status, str]:
    """Whether the floor is reached, and what is told of it.

    Inconclusive where pairs are too few, where the interval holds the floor, or where dense beside
    itself is not 1 on this machine.
    """
    now, noise = found.now, found.noise
    if not found.bounded:
        return "inconclusive", f"{min(now.pairs, noise.pairs)} pairs are too few: --time-limit"
    if floor.ratio is None:
        return "passed", f"{found.told}; no floor is asked"
    asked = f"{found.told}, at least {floor.ratio:.3f} ({floor.told})"
    if not noise.low <= 1 <= noise.high:
        beside = f"dense beside itself is {noise.ratio:.3f} [{noise.low:.3f}, {noise.high:.3f}]"
        return "inconclusive", f"{asked}; {beside}: this machine cannot tell"
    return now.decided(floor.ratio), asked


def too_wide(now: Interval, tolerance: float) -> str | None:
    """Why a ratio is no baseline: its interval is wider than what a check then tolerates."""
    if now.width <= tolerance:
        return None
    again = "again on a quieter machine or with a longer --time-limit"
    return f"the interval is {now.width:.0%} wide, a baseline's at most {tolerance:.0%}: {again}"


def improved(now: Interval, speed: MeasuredSpeed, tolerance: float) -> bool:
    """Whether the ratio is beyond what the baseline's tolerance explains."""
    return now.low > speed.speedup * (1 + tolerance)
