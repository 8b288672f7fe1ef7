"""The clock: interleaved pairs, looked at a few times, until a ratio is decided.

    look     1     2     3     4     5
    blocks  12    24    48    96   192

Pairs stand in blocks of neighbours that last about a tenth of a second, at most four of them, and
whose mean logarithm counts: a slow call has averaged over the load's coming and going by itself.
At each look the median of the blocks has an interval that supposes nothing of their
distribution (two of their order statistics), at a level that is the whole error divided by the
number of looks: however looks depend on each other, all of them together err as seldom as asked.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Literal

from tokenpass.errors import UserError

Clock = Callable[[], float]
Verdict = Literal["passed", "failed", "inconclusive"]
Progress = Callable[[int, float], None]

BLOCK = 4
"""Most pairs of a block."""

BLOCK_S = 0.12
"""What a block lasts, as far as `BLOCK` pairs do."""

LOOKS = (12, 24, 48, 96, 192)
"""Blocks at which it is looked."""

ERROR = 0.01
"""Of all looks together, both sides."""

STEADY = 0.1
"""Warm-up ends when the last calls' medians differ by no more than this share."""

WARM_UP = (3, 12)
"""Least and most groups of `BLOCK` calls before anything counts."""


@dataclass(frozen=True)
class Prepared:
    """What is timed, and what is done before each time and is not."""

    call: Callable[[], object]
    prepare: Callable[[], object]


Work = Callable[[], object] | Prepared


@dataclass(frozen=True)
class Interval:
    """Dense time over ours: the median of pairs, and its interval at the level of one look."""

    ratio: float
    low: float
    high: float
    pairs: int

    def decided(self, floor: float) -> Verdict:
        """Whether it is wholly above a floor, or wholly below."""
        if self.low >= floor:
            return "passed"
        return "failed" if self.high < floor else "inconclusive"

    @property
    def width(self) -> float:
        """Its width as a share of the ratio."""
        return (self.high - self.low) / self.ratio


@dataclass(frozen=True)
class Measured:
    """One run of pairs: its last interval, medians of both sides in ms, and dropped pairs."""

    interval: Interval
    first_ms: float
    second_ms: float
    dropped: int
    stopped: Literal["decided", "looks", "time"]


@cache
def tail(blocks: int, level: float) -> int:
    """How many blocks on each side lie outside the interval of their median.

    The largest k with P(fewer than k of `blocks` fair coins) <= level / 2; 0 where there is none.
    """
    total, k = 0.0, 0
    while k <= blocks:
        total += math.comb(blocks, k) / 2**blocks
        if total > level / 2:
            return k
        k += 1
    return 0


def block_of(times: Sequence[tuple[float, float]]) -> int:
    """Pairs of a block, by how long a quick pair takes: load shall not change it."""
    quick = sorted(one + other for one, other in times)[len(times) // 4]
    return max(1, min(BLOCK, math.ceil(BLOCK_S / quick)))


def interval(
    ratios: Sequence[float], level: float = ERROR / len(LOOKS), block: int = BLOCK
) -> Interval:
    """The median of ratios in the order of their pairs, with its interval.

    Unbounded where there are too few blocks for the level.
    """
    logs = [math.log(ratio) for ratio in ratios]
    blocks = sorted(
        sum(logs[at : at + block]) / block for at in range(0, len(logs) - block + 1, block)
    )
    k = tail(len(blocks), level)
    middle = math.exp(median(blocks)) if blocks else math.nan
    if not k:
        return Interval(middle, 0.0, math.inf, len(ratios))
    return Interval(middle, math.exp(blocks[k - 1]), math.exp(blocks[-k]), len(ratios))


def warm_up(works: Sequence[Work], clock: Clock = time.perf_counter) -> None:
    """Call all works in turn until their times are steady, or often enough."""
    before = math.inf
    for group in range(WARM_UP[1]):
        times = [seconds(work, clock) for _ in range(BLOCK) for work in works]
        now = median(times)
        if group >= WARM_UP[0] - 1 and abs(now - before) <= STEADY * before:
            return
        before = now


def measure(
    first: Work,
    second: Work,
    done: Callable[[Interval], bool],
    *,
    limit: float,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
    looks: Sequence[int] = LOOKS,
) -> Measured:
    """Time pairs in random order until `done` at a look, or the looks or `limit` seconds end.

    Pairs of which the clock makes no sense (it jumped) are dropped. Collecting garbage is put off.
    Raises `UserError` where the clock makes none of most pairs.
    """
    started, times = clock(), list[tuple[float, float]]()
    dropped, found, block = 0, interval([]), BLOCK
    enabled = gc.isenabled()
    gc.disable()
    try:
        stopped: Literal["decided", "looks", "time"] = "looks"
        for pair in timed(first, second, random.Random(seed), clock):
            if pair is None:
                dropped += 1
                if dropped > max(8, len(times)):
                    raise UserError(f"the clock went back in {dropped} pairs: nothing is timed")
                continue
            times.append(pair)
            elapsed = clock() - started
            if progress is not None:
                progress(len(times), elapsed)
            over = elapsed > limit
            if len(times) == looks[0]:
                block = block_of(times)
            blocks, rest = divmod(len(times), block)
            if (not rest and blocks in looks) or over:
                found = interval([one / other for one, other in times], block=block)
                if done(found):
                    stopped = "decided"
                    break
                if over:
                    stopped = "time"
                    break
            if blocks >= looks[-1]:
                break
    finally:
        if enabled:
            gc.enable()
    sides = zip(*times, strict=True) if times else ((math.nan,), (math.nan,))
    first_ms, second_ms = (1e3 * median(side) for side in sides)
    return Measured(found, first_ms, second_ms, dropped, stopped)


def timed(
    first: Work, second: Work, order: random.Random, clock: Clock
) -> Iterator[tuple[float, float] | None]:
    """Pairs of times without end; None where the clock went back or stood still."""
    while True:
        if order.random() < 0.5:
            one = seconds(first, clock)
            other = seconds(second, clock)
        else:
            other = seconds(second, clock)
            one = seconds(first, clock)
        sound = all(math.isfinite(t) and t > 0 for t in (one, other))
        yield (one, other) if sound else None


def seconds(work: Work, clock: Clock) -> float:
    """How long one call takes."""
    if isinstance(work, Prepared):
        work.prepare()
        work = work.call
    started = clock()
    work()
    return clock() - started
