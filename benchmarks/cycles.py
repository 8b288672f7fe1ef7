"""Memory over compile-and-reset cycles: `python -m benchmarks.cycles [--cycles 500] [--eager]`.

Each backend runs the same loop in a process of its own: compile a small model, run it, forget
everything. What the process holds is read after the first cycles, when caches are filled, and at
the end. Written as JSON with the machine's fingerprint; 1 is the exit code where tokenpass grew by
more than 5 % above what the other backend did.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import fingerprint

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAIRS = {"inductor": ("inductor", "tokenpass"), "eager": ("aot_eager", "tokenpass-eager")}
EDITED: dict[str, Any] = {"budget": 0.7, "objective": "flops", "on_failure": "raise"}
OPTIONS = {"tokenpass": EDITED, "tokenpass-eager": {**EDITED, "lowering": "eager"}}
WARM = 0.1
"""The share of the cycles after which growth counts."""
ALLOWED = 1.05


@dataclass(frozen=True)
class Growth:
    """Resident MiB after the first cycles and at the end."""

    backend: str
    cycles: int
    first_mib: float
    last_mib: float

    @property
    def ratio(self) -> float:
        """How many times what it held first the process holds at the end."""
        return self.last_mib / self.first_mib


class Block(nn.Module):
    """Attention and MLP around a residual stream of width 32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.other(x))))


class Small(nn.Module):
    """Two blocks; the mean of the tokens is read."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).mean(1)


def grow(backend: str, cycles: int) -> Growth:
    """The loop in this process, which must be a fresh one."""
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(2, 24, 32)
    name, options = backend.split("-")[0], OPTIONS.get(backend)
    first = 0.0
    for cycle in range(cycles):
        if cycle == max(1, int(cycles * WARM)):
            first = resident_mib()
        with torch.no_grad():
            torch.compile(model, backend=name, options=options)(x)
        torch._dynamo.reset()
    return Growth(backend, cycles, first, resident_mib())


def resident_mib() -> float:
    """What the process holds once garbage is collected."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell what a process holds")


def in_a_child(backend: str, cycles: int) -> Growth:
    """The loop in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cycles", "--child", backend]
    done = subprocess.run(
        [*command, "--cycles", str(cycles)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{backend} failed:\n{done.stderr[-2000:]}")
    return Growth(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: list[str] | None = None) -> int:
    """Measure a pair of backends, write the file; 1 where tokenpass grew too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--eager", action="store_true", help="lower eagerly, against aot_eager")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        print(json.dumps(asdict(grow(chosen.child, chosen.cycles))))
        return 0
    pair = "eager" if chosen.eager else "inductor"
    other, ours = (in_a_child(backend, chosen.cycles) for backend in PAIRS[pair])
    above = ours.ratio / other.ratio
    result = {
        "machine": fingerprint(),
        "above": above,
        "other": asdict(other),
        "ours": asdict(ours),
    }
    path = RESULTS / f"cycles_{pair}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{other}\n{ours}\n{above:.3f} times the other's growth; written to {path}")
    return int(above > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
