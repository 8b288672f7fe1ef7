"""Records pairs of the same model compiled twice, in fresh processes, quiet and with a neighbour.

    python -m benchmarks.verdicts.record

Both sides are dense Inductor on the pretrained MiniLM, one text of 64 tokens: what their ratios
show is the machine alone. Times are written in microseconds, a list for each process.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import BaseModel, ConfigDict
from torch._inductor.compile_fx import compile_fx
from torch.fx import GraphModule

from benchmarks.encoder import load_encoder
from benchmarks.machine import ROOT, fingerprint
from benchmarks.verdicts.load import CONDITIONS, Condition, competing
from tokenpass.check import pairs

TOKENS = 64
NOISE_PAIRS = 96
PAIRS = pairs.LOOKS[-1] * pairs.BLOCK
RECORDED = ROOT / "benchmarks" / "results" / "verdict_pairs.json"

Pairs = list[tuple[int, int]]
"""Microseconds of both sides, pair by pair."""


class Process(BaseModel):
    """What one process recorded: one compilation beside itself, and beside another of the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: Pairs
    pairs: Pairs


class Recorded(BaseModel):
    """Records of each condition, and of what machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: dict[str, Any]
    processes: dict[Condition, list[Process]]


def again(module: GraphModule, inputs: Any) -> Any:
    """Inductor as another backend: Dynamo keeps its compilations apart."""
    return compile_fx(module, inputs)


def record_here(seed: int) -> Process:
    """Compile and time in this process."""
    model = load_encoder().model
    ids = torch.randint(1000, 20000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    compilations = torch.compile(model), torch.compile(model, backend=again)
    first, second = ((lambda one=one: one(input_ids=ids)) for one in compilations)
    with torch.no_grad():
        first()
        second()
        pairs.warm_up([first, second])
        order = random.Random(seed)
        return Process(
            noise=taken(first, first, order, NOISE_PAIRS), pairs=taken(first, second, order, PAIRS)
        )


def taken(first: pairs.Work, second: pairs.Work, order: random.Random, count: int) -> Pairs:
    """Times of so many pairs."""
    found: Pairs = []
    for pair in pairs.timed(first, second, order, time.perf_counter):
        if pair is not None:
            found.append((round(pair[0] * 1e6), round(pair[1] * 1e6)))
        if len(found) == count:
            break
    return found


def record(condition: Condition, seed: int) -> Process:
    """One fresh process."""
    with competing(condition, seed):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.verdicts.record", "--here", str(seed)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    return Process.model_validate_json(done.stdout.splitlines()[-1])


def main(
    processes: Annotated[int, typer.Option(min=1, help="Of each condition.")] = 24,
    to: Annotated[Path, typer.Option(metavar="FILE")] = RECORDED,
    here: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Record pairs of both conditions, in turn."""
    if here is not None:
        print(record_here(here).model_dump_json())
        return
    found: dict[Condition, list[Process]] = {condition: [] for condition in CONDITIONS}
    for seed in range(processes):
        for condition in CONDITIONS:
            one = record(condition, seed)
            found[condition].append(one)
            both = [sum(side) / len(one.pairs) / 1e3 for side in zip(*one.pairs, strict=True)]
            print(f"{condition} {seed}: {both[0]:.2f} and {both[1]:.2f} ms", flush=True)
    kept = Recorded(fingerprint=fingerprint(), processes=found)
    to.write_text(json.dumps(kept.model_dump(), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    typer.run(main)
