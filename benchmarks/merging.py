"""The share of a model's time that merging takes: `python -m benchmarks.merging [--budget 0.5]`.

ViT-B/16 on eight images, compiled at a budget, under torch's profiler with Inductor's own kernels
named. Counted are our matching and bookkeeping, and every generated kernel that gathers or scatters
(the merge itself, fused with the residual sum and norm beside it, which are then counted too: an
upper bound). A floor: 3 % of the model's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import fingerprint
from benchmarks.models import CASES

RESULT = Path(__file__).resolve().parent / "results" / "merging.json"
CASE = "vit_b_224_b8"
ALLOWED = 0.03
RUNS = 7
OURS = ("tokenpass::bipartite_match", "tokenpass::merge_")
MOVING = ("scatter", "gather", "index")
"""Words in the names of generated kernels that move tokens."""


def shares(budget: float) -> list[dict[str, float]]:
    """Milliseconds of each merging kernel in some profiled calls, and of all kernels."""
    case = next(one for one in CASES if one.name == CASE)
    model, kwargs = case.build()
    options = {"budget": budget, "inductor": {"cpp.enable_kernel_profile": True}}
    compiled = torch.compile(model, backend="tokenpass", options=options)
    found = []
    with torch.no_grad():
        for _ in range(3):
            compiled(**kwargs)
        for _ in range(RUNS):
            with profile(activities=[ProfilerActivity.CPU]) as recorded:
                compiled(**kwargs)
            events = recorded.key_averages()
            times = {e.key: e.self_cpu_time_total / 1e3 for e in events if merges(e.key)}
            found.append(times | {"all": sum(e.self_cpu_time_total for e in events) / 1e3})
    return found


def merges(name: str) -> bool:
    """Whether an event belongs to merging."""
    return name.startswith(OURS) or ("fused" in name and any(word in name for word in MOVING))


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the file; 1 with `--check` where the floor was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--check", action="store_true", help="exit with 1 when the floor is missed")
    chosen = parser.parse_args(arguments)
    runs = shares(chosen.budget)
    parts = [sum(v for k, v in run.items() if k != "all") / run["all"] for run in runs]
    share = statistics.median(parts)
    result: dict[str, Any] = {
        "case": CASE,
        "budget": chosen.budget,
        "share": share,
        "runs": runs,
        "allowed": ALLOWED,
        "met": share <= ALLOWED,
    }
    text = json.dumps({"machine": fingerprint(), "results": [result]}, indent=1)
    RESULT.write_text(text + "\n")
    print(f"merging takes {share:.2%} of {CASE} at budget {chosen.budget} (at most {ALLOWED:.0%})")
    return int(chosen.check and not result["met"])


if __name__ == "__main__":
    sys.exit(main())
