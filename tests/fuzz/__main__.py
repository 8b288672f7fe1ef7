"""Run a range of seeds: `python -m tests.fuzz --start 0 --count 1000 --jobs 2 --save DIR`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tests.fuzz.seeds import one


def main() -> int:
    """Print failures as they come, then how many seeds had which outcome; 1 if any failed."""
    read = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    read.add_argument("--start", type=int, default=0)
    read.add_argument("--count", type=int, default=1000)
    read.add_argument("--jobs", type=int, default=1)
    read.add_argument("--save", type=Path, default=None, metavar="DIR")
    asked = read.parse_args()
    seeds = range(asked.start, asked.start + asked.count)
    began, outcomes = time.monotonic(), Counter[str]()
    work = partial(one, folder=asked.save)
    with ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
        for at, (outcome, told) in enumerate(pool.map(work, seeds), 1):
            outcomes[outcome] += 1
            if told:
                print(told, flush=True)
            if at % 100 == 0:
                print(f"{at} seeds, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    return 1 if outcomes["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
