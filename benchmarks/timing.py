"""Speed as benchmarks report it: the median of interleaved pairs' ratios and its interval.

Absolute times swing by factors within minutes; two calls that follow each other see nearly the
same machine. So each pair times dense and variant back to back, in random order, and only the
ratio within a pair is used.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenpass.check.pairs import Clock, Work, seconds, timed

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class PairedRatio:
    """Dense time divided by variant time: above 1, the variant is faster."""

    speedup: float
    low: float
    high: float
    pairs: int
    dense_ms: float
    variant_ms: float

    def __str__(self) -> str:
        return f"{self.speedup:.2f}x [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Pace:
    """When to stop: after `pairs`, after `seconds`, or once the interval is narrow enough.

    `width` is the interval's width as a share of the median; `least` pairs are always timed.
    """

    pairs: int = 40
    least: int = 8
    seconds: float = 60.0
    width: float = 0.02
    warmup: int = 2


def paired_ratio(
    dense: Work,
    variant: Work,
    *,
    pace: Pace | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> PairedRatio:
    """Time `dense` against `variant` in interleaved pairs; both have been compiled before.

    With the same function twice this is the control that shows the machine's noise floor.
    """
    pace = pace or Pace()
    order = random.Random(seed)
    for _ in range(pace.warmup):
        seconds(dense, clock)
        seconds(variant, clock)
    dense_s: list[float] = []
    variant_s: list[float] = []
    started = clock()
    for pair in timed(dense, variant, order, clock):
        if pair is None:
            raise RuntimeError("the clock went back or stood still")
        dense_s.append(pair[0])
        variant_s.append(pair[1])
        if len(dense_s) >= pace.pairs:
            break
        if len(dense_s) < pace.least:
            continue
        if clock() - started > pace.seconds or _narrow(dense_s, variant_s, pace.width, seed):
            break
    return summarise(dense_s, variant_s, seed=seed)


def summarise(
    dense_s: Sequence[float], variant_s: Sequence[float], *, seed: int = 0
) -> PairedRatio:
    """The paired ratio of times that were taken pair by pair elsewhere."""
    ratios = np.asarray(dense_s) / np.asarray(variant_s)
    low, high = bootstrap_interval(ratios, np.median, seed=seed)
    return PairedRatio(
        speedup=float(np.median(ratios)),
        low=low,
        high=high,
        pairs=len(ratios),
        dense_ms=1e3 * statistics.median(dense_s),
        variant_ms=1e3 * statistics.median(variant_s),
    )


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., NDArray[np.float64] | np.floating],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile interval of `statistic` (taking `axis`) over resampled `values` [count]."""
    sample = np.asarray(values, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    estimates = statistic(sample[rows], axis=1)
    low, high = np.quantile(estimates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _narrow(dense_s: list[float], variant_s: list[float], width: float, seed: int) -> bool:
    now = summarise(dense_s, variant_s, seed=seed)
    return now.high - now.low < width * now.speedup
