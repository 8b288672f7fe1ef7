"""Replays whole decisions on recorded pairs: how often they err, and how often they say nothing.

    python -m benchmarks.verdicts.replay

A decision is what two runs of the command make: one takes down a baseline in one process, the
other is checked against it in another process. Each draws blocks of neighbouring pairs from its
process's record, with replacement, until its looks are done; a slow-down is planted in the second
run's times. The same without drawing, pairs in the order in which they came, is reported beside it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, permutations
from pathlib import Path
from typing import Annotated, Any

import typer
from scipy.stats import binomtest

from benchmarks.machine import ROOT, fingerprint
from benchmarks.verdicts.load import CONDITIONS
from benchmarks.verdicts.record import RECORDED, Pairs, Process, Recorded
from tokenpass.check import speed
from tokenpass.check.check_file import Gates
from tokenpass.check.outcome import Status

RESULTS = ROOT / "benchmarks" / "results" / "verdicts.json"
SLOW_DOWNS = (0.0, 0.03, 0.05, 0.07, 0.1, 0.15)
"""Shares of time that the second run takes longer."""

BLOCK = 48
LIMIT_S = 60.0
Draw = Callable[[Pairs], Iterator[tuple[int, int]]]


def in_blocks(rng: random.Random) -> Draw:
    """Blocks of a record without end; a block that passes the end goes on at the start."""

    def draw(pairs: Pairs) -> Iterator[tuple[int, int]]:
        while True:
            at = rng.randrange(len(pairs))
            yield from (pairs[(at + i) % len(pairs)] for i in range(BLOCK))

    return draw


def in_order(pairs: Pairs) -> Iterator[tuple[int, int]]:
    """A record as it is."""
    return iter(pairs)


@dataclass
class Machine:
    """A clock that only the works move on."""

    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def work(self, times: Iterator[float]) -> Callable[[], None]:
        """A work that takes each of the times in turn."""

        def call() -> None:
            self.now += next(times)

        return call


def clocked(one: Process, draw: Draw, slower: float, decisive: float | None) -> speed.Clocked:
    """What a run would have timed."""
    machine = Machine()
    alone = machine.work(s * 1e-6 for s in chain.from_iterable(draw(one.noise)))
    drawn: list[tuple[int, int]] = []
    source = draw(one.pairs)

    def side(which: int, factor: float) -> Iterator[float]:
        at = 0
        while True:
            if at == len(drawn):
                drawn.append(next(source))
            yield drawn[at][which] * factor * 1e-6
            at += 1

    dense, ours = machine.work(side(0, 1.0)), machine.work(side(1, 1 + slower))
    noise = speed.beside_itself(alone, LIMIT_S * speed.NOISE_LIMIT, clock=machine.clock)
    found = speed.until_decided(dense, ours, decisive, LIMIT_S, clock=machine.clock)
    return speed.Clocked(noise, found)


def decision(before: Process, now: Process, draw: Draw, slower: float) -> tuple[Status, int] | None:
    """A baseline in one process and a check in another: the verdict, and its pairs.

    None where the command takes no baseline down, and says so: then there is nothing to check.
    """
    tolerance = Gates().tolerance
    known = clocked(before, draw, 0.0, None)
    if not known.bounded or speed.too_wide(known.now, tolerance):
        return None
    floor = speed.Floor(known.now.ratio * (1 - tolerance), "the baseline's")
    found = clocked(now, draw, slower, floor.ratio)
    return speed.verdict(found, floor)[0], found.now.pairs


def rates(decided: list[tuple[Status, int] | None]) -> dict[str, Any]:
    """Shares of each verdict, that of failures with its 95 % interval, and the median of pairs."""
    found = [one for one in decided if one is not None]
    counts = Counter(status for status, _ in found)
    within = binomtest(counts["failed"], len(found)).proportion_ci(method="exact")
    pairs = sorted(count for _, count in found)
    return {
        "no_baseline": 1 - len(found) / len(decided),
        "decisions": len(found),
        **{status: counts[status] / len(found) for status in ("passed", "failed", "inconclusive")},
        "failed_interval": [within.low, within.high],
        "median_pairs": pairs[len(pairs) // 2],
    }


def main(
    decisions: Annotated[int, typer.Option(min=1, help="Of each condition and slow-down.")] = 4000,
    recorded: Annotated[Path, typer.Option(metavar="FILE")] = RECORDED,
    to: Annotated[Path, typer.Option(metavar="FILE")] = RESULTS,
) -> None:
    """Replay decisions of every condition and slow-down."""
    record = Recorded.model_validate_json(recorded.read_text())
    rows: list[dict[str, Any]] = []
    for condition in CONDITIONS:
        processes = record.processes[condition]
        for slower in SLOW_DOWNS:
            rng = random.Random(0)
            draw = in_blocks(rng)
            two = (rng.sample(processes, 2) for _ in range(decisions))
            drawn = [decision(before, now, draw, slower) for before, now in two]
            every = permutations(processes, 2)
            ordered = [decision(before, now, in_order, slower) for before, now in every]
            row = {"condition": condition, "slower": slower}
            rows.append(row | {"drawn": rates(drawn), "in_order": rates(ordered)})
            print(rows[-1], flush=True)
    counts = {name: sum(len(p.pairs) for p in of) for name, of in record.processes.items()}
    machine = {"recorded_on": record.fingerprint, "fingerprint": fingerprint()}
    result = {**machine, "pairs": counts, "block": BLOCK, "rows": rows}
    to.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
