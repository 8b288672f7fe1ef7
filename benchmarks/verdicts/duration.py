"""How long a verdict takes on a real case: `python -m benchmarks.verdicts.duration`.

The project's own check file, a case of it, with a baseline of this machine made first. What counts
is the case's time: loading, planning, both compilations, outputs, the A/A run and the pairs. Then
the facts of every case, without a clock.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.machine import ROOT, fingerprint
from benchmarks.verdicts.confirm import check

RESULTS = ROOT / "benchmarks" / "results" / "verdicts_duration.json"


def facts_s() -> dict[str, float]:
    """Seconds of each case's deterministic gates, all in one fresh process."""
    command = [sys.executable, "-m", "tokenpass.cli", "check", "--no-timing", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: case["seconds"] for name, case in json.loads(done.stdout)["cases"].items()}


def main(
    case: Annotated[str, typer.Option(metavar="CASE")] = "minilm_half",
    runs: Annotated[int, typer.Option(min=1)] = 7,
    to: Annotated[Path, typer.Option(metavar="FILE")] = RESULTS,
) -> None:
    """Run a case of the project's check file several times."""
    file = ROOT / "tokenpass.check.yaml"
    with tempfile.TemporaryDirectory() as name:
        baseline = ("--baseline", f"{name}/baseline.json")
        first = check(file, case, 0.0, "--update-baseline", *baseline)
        print("baseline", first, flush=True)
        found = []
        for _ in range(runs):
            found.append(check(file, case, 0.0, *baseline))
            print(found[-1], flush=True)
    result = {
        "fingerprint": fingerprint(),
        "case": case,
        "median_verdict_s": median(run["verdict_s"] for run in found),
        "baseline": first,
        "runs": found,
        "facts_s": facts_s(),
    }
    to.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
