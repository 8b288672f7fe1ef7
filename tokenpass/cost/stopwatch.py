"""Time calls on a machine that may be busy with other things.

A call of several threads collapses as soon as another process takes one of its cores (a GEMM of
200 GFLOP/s was seen at 5), and milliseconds without such a disturbance can be rare. Processor
time of one thread hardly notices. So on a CPU every call is timed alone in processor time, and
a few of them, the probes, in wall time with all threads, over and over, until one ran
undisturbed: their ratio is the gain that threads bring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from tokenpass.cost.measure_cases import Case

Clock = Callable[[], float]
Progress = Callable[[float, str], None]

# One sample lasts at least this long; short calls are repeated inside it.
SAMPLE_SECONDS = 2e-4

# A probe is done when its threads share the work this well; nothing runs better by accident.
DONE = 0.97


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operators on the calling thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fastest(
    cases: Sequence[Case],
    seconds: float,
    progress: Progress,
    clock: Clock = time.perf_counter,
    wait: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds per call of every case by `clock`: the least over at least two rounds.

    Rounds go on for `seconds` of wall time; `wait` returns when the device has finished.
    """
    start = time.perf_counter()
    best = [float("inf")] * len(cases)
    rounds = 0
    while rounds < 2 or time.perf_counter() - start < seconds:
        for place, case in enumerate(cases):
            spent = time.perf_counter() - start
            if rounds >= 2 and spent > seconds:
                break
            best[place] = min(best[place], _sample(case, best[place], clock, wait))
            progress(min(spent / seconds, 1.0), f"round {rounds + 1}: {case.table}")
        rounds += 1
    return best


def thread_gains(
    probes: Sequence[Case], alone: Sequence[float], seconds: float, progress: Progress
) -> list[float]:
    """How many times faster each probe runs with all threads than `alone`, its time on one.

    At least 1 and at most the number of threads. Rounds over the probes that were not yet seen
    undisturbed go on for `seconds`.
    """
    threads = torch.get_num_threads()
    start = time.perf_counter()
    best = [float("inf")] * len(probes)
    first = True
    while first or time.perf_counter() - start < seconds:
        open_places = [
            place for place in range(len(probes)) if best[place] > alone[place] / (threads * DONE)
        ]
        if not open_places:
            break
        for place in open_places:
            best[place] = min(best[place], _sample(probes[place], best[place], time.perf_counter))
            spent = time.perf_counter() - start
            progress(min(spent / seconds, 1.0), f"threads: {probes[place].table}")
        first = False
    return [min(max(one / many, 1.0), threads) for one, many in zip(alone, best, strict=True)]


def _sample(
    case: Case, expected: float, clock: Clock, wait: Callable[[], None] = lambda: None
) -> float:
    """Seconds per call; `expected` (infinite at first) decides how often it is repeated."""
    repeats = max(1, round(SAMPLE_SECONDS / expected)) if expected > 0 else 1
    if case.warm:
        case.call()
    wait()
    start = clock()
    for _ in range(repeats):
        case.call()
    wait()
    return (clock() - start) / repeats
