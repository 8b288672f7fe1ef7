"""Compile time and peak memory, each variant alone in a fresh process with cold caches.

`measure_child` starts `python -m benchmarks.child CASE VARIANT`, which prints one line of JSON.
A process's peak never falls, so two variants in one process would share the larger one.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import find_case
from benchmarks.reported import Listener
from benchmarks.variants import Variant, compile_variant

ROOT = Path(__file__).resolve().parent.parent
SELF_STATUS = Path("/proc/self/status")
CLEAR_PEAK = Path("/proc/self/clear_refs")
CHILD_SECONDS = 1800


@dataclass(frozen=True)
class ChildResult:
    """What one process measured.

    `compile_s` is the wall time of the first call less a later one, `compile_cpu_s` the processor
    time likewise, compilers included: on a busy machine only the latter can be compared.
    `peak_tensor_mib` is the most that tensors allocated during one call held at a time (weights
    and inputs excluded: exact, the same on every run), `peak_rss_mib` the most the process held.
    """

    compile_s: float
    compile_cpu_s: float
    own_s: float | None
    peak_tensor_mib: float
    peak_rss_mib: float


def measure_child(case: str, variant: Variant) -> ChildResult:
    """Run one case in a fresh process with its own, empty compiler caches.

    Raises:
        RuntimeError: The process failed; the message ends with what it said last.
    """
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": caches,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # compilers become children that are counted
        }
        command = [sys.executable, "-m", "benchmarks.child", case, json.dumps(asdict(variant))]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"measuring {case} ({variant.name}) failed:\n{done.stderr[-2000:]}")
    return ChildResult(**json.loads(done.stdout.splitlines()[-1]))


def measure_here(case_name: str, variant: Variant) -> ChildResult:
    """Compile and run the case in this process, which must be a fresh one."""
    model, inputs = find_case(case_name).build()
    torch.compile(torch.nn.ReLU())(torch.ones(8))  # loads the compiler and checks its tools
    compiled = compile_variant(model, variant)
    listener = Listener()
    with torch.no_grad():
        first_s, first_cpu_s = _timed(lambda: compiled(**inputs))
        own_s = listener.reported().own_s
        compiled(**inputs)
        later_s, later_cpu_s = _timed(lambda: compiled(**inputs))
        reset_peak()
        compiled(**inputs)
        resident = peak_rss_mib()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            compiled(**inputs)
    return ChildResult(
        compile_s=first_s - later_s,
        compile_cpu_s=first_cpu_s - later_cpu_s,
        own_s=own_s,
        peak_tensor_mib=peak_of(allocations(profiler)) / 2**20,
        peak_rss_mib=resident,
    )


def allocations(profiler: profile) -> list[int]:
    """Bytes of each allocation (positive) and release (negative) in order of time."""
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak_of(steps: Iterable[int]) -> int:
    """The largest running sum of bytes."""
    held = peak = 0
    for step in steps:
        held += step
        peak = max(peak, held)
    return peak


def reset_peak() -> None:
    """Let the process's peak start anew where the system can (Linux)."""
    if CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")


def peak_rss_mib() -> float:
    """The process's peak resident memory, since `reset_peak` where the system says so."""
    if SELF_STATUS.exists():
        for line in SELF_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _timed(work: Any) -> tuple[float, float]:
    """Wall seconds, and processor seconds of this process and of children that ended."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    work()
    return time.perf_counter() - wall, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    result = measure_here(sys.argv[1], Variant(**json.loads(sys.argv[2])))
    print(json.dumps(asdict(result)))
