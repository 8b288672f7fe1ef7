"""A neighbour that competes for the machine: bursts of arithmetic and of memory traffic."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Literal, get_args

import torch

Condition = Literal["quiet", "loaded"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

BURST_S, PAUSE_S = 2.0, 2.0
"""Mean lengths; both are drawn from an exponential distribution."""


@contextlib.contextmanager
def competing(condition: Condition, seed: int) -> Iterator[None]:
    """The neighbour beside what the block does, or nothing."""
    if condition == "quiet":
        yield
        return
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.verdicts.load", str(seed)])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def burst(seconds: float) -> None:
    """One thread's matrix products, and copies of more than a cache holds."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    large = torch.zeros(16 * 2**20)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        torch.mm(a, b)
        large.add_(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rng = random.Random(int(sys.argv[1]))
    while True:
        burst(rng.expovariate(1 / BURST_S))
        time.sleep(rng.expovariate(1 / PAUSE_S))
