"""What imports cost on top of torch: `python -m benchmarks.imports [--rounds 15]`.

Each round starts a fresh process for every variant, in random order, with compiled modules cached
by a round before; the child says how long the import took it, in wall and in processor time. Costs
are differences within a round. Written as JSON; 1 is the exit code where `import tokenpass` costs
more than 50 ms of processor time over `import torch`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import fingerprint
from benchmarks.timing import bootstrap_interval

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "imports.json"
BASE = "torch"
VARIANTS: Mapping[str, str] = {
    BASE: "import torch",
    "tokenpass": "import torch, tokenpass",
    "dynamo": "import torch._dynamo, torch._inductor.compile_fx",
    "backend": "import torch._dynamo, torch._inductor.compile_fx, tokenpass.backend",
}
"""`backend` is what the entry point loads when the first model is compiled, `dynamo` what any
compilation with Inductor loads as well."""
OVER: Mapping[str, str] = {"tokenpass": BASE, "dynamo": BASE, "backend": "dynamo"}
CHILD = """
import json, time
wall, cpu = time.perf_counter(), time.process_time()
{code}
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""
ALLOWED_MS = 50.0

Seconds = tuple[float, float]
"""Wall and processor seconds of one import."""


@dataclass(frozen=True)
class ImportCost:
    """Milliseconds of an import over another: medians over rounds, 95 % interval of `cpu_ms`."""

    imported: str
    over: str
    rounds: int
    wall_ms: float
    cpu_ms: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"[{self.low:.1f}, {self.high:.1f}]"
        return (
            f"{self.imported} over {self.over}: {self.cpu_ms:.1f} ms {interval} of processor time"
        )


def in_a_child(name: str) -> Seconds:
    """Seconds of one variant's import in a fresh process.

    Raises:
        RuntimeError: The import failed; the message ends with what the process said last.
    """
    command = [sys.executable, "-W", "ignore", "-c", CHILD.format(code=VARIANTS[name])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{VARIANTS[name]!r} failed:\n{done.stderr[-2000:]}")
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def measure(
    rounds: int, *, once: Callable[[str], Seconds] = in_a_child, seed: int = 0
) -> list[ImportCost]:
    """The costs of all variants; a round before the first one is not counted."""
    order = random.Random(seed)
    taken: dict[str, list[Seconds]] = {name: [] for name in VARIANTS}
    for at in range(rounds + 1):
        names = list(VARIANTS)
        order.shuffle(names)
        for name in names:
            seconds = once(name)
            if at:
                taken[name].append(seconds)
    return [_cost(name, over, taken[name], taken[over]) for name, over in OVER.items()]


def _cost(name: str, over: str, own: Sequence[Seconds], base: Sequence[Seconds]) -> ImportCost:
    pairs = list(zip(own, base, strict=True))
    wall, cpu = ([1e3 * (one[at] - other[at]) for one, other in pairs] for at in (0, 1))
    low, high = bootstrap_interval(cpu, np.median)
    return ImportCost(
        name, over, len(cpu), statistics.median(wall), statistics.median(cpu), low, high
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the file and say it; 1 where importing tokenpass costs too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args(arguments)
    costs = measure(chosen.rounds)
    result = {"machine": fingerprint(), "costs": [asdict(cost) for cost in costs]}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(*costs, f"written to {RESULT}", sep="\n")
    return int(next(cost.cpu_ms for cost in costs if cost.imported == "tokenpass") > ALLOWED_MS)


if __name__ == "__main__":
    sys.exit(main())
