"""The command itself, run in fresh processes: verdicts of A/A and of a planted slow-down.

    python -m benchmarks.verdicts.confirm

First a baseline of the pretrained MiniLM (one text of 64 tokens, budget 1.0), then check after
check beside it, quiet and with a neighbour in turn. A slow-down is planted in what the backend
compiles: each call takes its own time once more by that share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.encoder import load_encoder
from benchmarks.machine import ROOT, fingerprint
from benchmarks.verdicts.load import CONDITIONS, competing
from benchmarks.verdicts.record import TOKENS
from tokenpass.check import running
from tokenpass.cli import main as tokenpass

RESULTS = ROOT / "benchmarks" / "results" / "verdicts_confirmed.json"
CHECK_FILE = """\
version: 1
cases:
  minilm:
    model: benchmarks.verdicts.confirm:minilm
"""
RUNS = {0.0: 30, 0.1: 10}
"""Real runs of each slow-down, over both conditions."""


def minilm() -> Any:
    """The model and its call."""
    ids = torch.randint(1000, 20000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return load_encoder().model, (), {"input_ids": ids}


def slowed(backend: Callable[..., Any], share: float) -> Callable[..., Any]:
    """A backend whose compiled graphs take longer by a share of their own time."""

    def compiling(module: Any, inputs: Any, **options: Any) -> Callable[..., Any]:
        compiled = backend(module, inputs, **options)

        def call(*args: Any) -> Any:
            started = time.perf_counter()
            found = compiled(*args)
            until = time.perf_counter() + share * (time.perf_counter() - started)
            while time.perf_counter() < until:
                pass
            return found

        return call

    return compiling


def check(file: Path, case: str, slower: float, *more: str) -> dict[str, Any]:
    """One case by the command in a fresh process: its exit code, seconds and speed gate.

    `seconds` are the whole process's, `verdict_s` the case's: from its model to its verdict.
    """
    command = [sys.executable, "-m", "benchmarks.verdicts.confirm", "--here", str(slower), "--"]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "check", str(file), "--only", case, "--json", *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GITHUB_ACTIONS": "false"},
    )
    seconds = time.perf_counter() - started
    try:
        found = json.loads(done.stdout)["cases"][case]
    except (json.JSONDecodeError, KeyError) as error:
        raise RuntimeError(f"the check did not end: {done.stderr[-2000:]}") from error
    gates = {gate["name"]: gate for gate in found["gates"]}
    return {
        "exit_code": done.returncode,
        "status": gates["speed"]["status"],
        "told": gates["speed"]["told"],
        "speed": found["speed"],
        "seconds": round(seconds, 1),
        "verdict_s": found["seconds"],
    }


def main(
    arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    here: Annotated[float | None, typer.Option(hidden=True)] = None,
    to: Annotated[Path, typer.Option(metavar="FILE")] = RESULTS,
) -> None:
    """Run the real command as often as asked."""
    if here is not None:
        if here:
            running.backend = slowed(running.backend, here)
        sys.argv = ["tokenpass", *(arguments or [])]
        tokenpass()
        return
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "tokenpass.check.yaml"
        file.write_text(CHECK_FILE)
        baseline = check(file, "minilm", 0.0, "--update-baseline")
        print("baseline", baseline, flush=True)
        for slower, count in RUNS.items():
            for at in range(count):
                condition = CONDITIONS[at % len(CONDITIONS)]
                with competing(condition, at):
                    run = {"condition": condition, "slower": slower} | check(file, "minilm", slower)
                runs.append(run)
                print(run, flush=True)
                result = {"fingerprint": fingerprint(), "baseline": baseline, "runs": runs}
                to.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
