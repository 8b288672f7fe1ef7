"""What a machine allows a measurement: processors, limits of its container, governor, load."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path("/")
GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
GROUPS = "proc/self/cgroup"
NO_LIMIT = 2**60
"""Bytes above which version 1 of control groups means that there is no limit."""

LISTEN_S = 0.5
BUSY = 0.2
"""Of one processor: what others may take before it is warned about."""


@dataclass(frozen=True)
class Limits:
    """What stays as it is while a check runs.

    `cpus`: processors' worth of time that this process may have (its affinity and its container's
    quota); `memory_gib`: its container's limit, None without one; `governor`: of the first
    processor's frequency, None where the system tells none.
    """

    cpus: float
    memory_gib: float | None
    governor: str | None


def limits(root: Path = ROOT) -> Limits:
    """Those of this process."""
    quotas = [*quotas_v1(root), *quotas_v2(root)]
    memory = [bytes_ for bytes_ in memory_limits(root) if bytes_ < NO_LIMIT]
    governor = read(root / GOVERNOR)
    return Limits(
        cpus=round(min([float(allowed()), *quotas]), 2),
        memory_gib=round(min(memory) / 2**30, 2) if memory else None,
        governor=governor or None,
    )


def allowed() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups and of those above, innermost first.

    Without a controller's name, those of version 2. In a container the inner ones may be hidden,
    and its own group is the root.
    """
    base = root / "sys/fs/cgroup" / controller
    for line in read(root / GROUPS).splitlines():
        _, controllers, inner = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            place = inner.strip("/")
            while place:
                yield base / place
                place = place.rpartition("/")[0]
    yield base


def quotas_v2(root: Path) -> Iterator[float]:
    """Processors that `cpu.max` grants: microseconds of each period."""
    for folder in groups(root, ""):
        quota, _, period = read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def quotas_v1(root: Path) -> Iterator[float]:
    """The same of version 1; -1 is no quota."""
    for folder in groups(root, "cpu"):
        quota, period = (read(folder / f"cpu.cfs_{of}_us") for of in ("quota", "period"))
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def memory_limits(root: Path) -> Iterator[int]:
    """Bytes that control groups of either version allow."""
    files = [folder / "memory.max" for folder in groups(root, "")]
    files += [folder / "memory.limit_in_bytes" for folder in groups(root, "memory")]
    yield from (int(text) for text in map(read, files) if text.isdigit())


def read(path: Path) -> str:
    """A file's text; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def load_of_others(seconds: float = LISTEN_S) -> float:
    """Processors that are busy, or stolen from this machine, besides this process's own threads."""
    own = own_seconds()
    used = psutil.cpu_times_percent(seconds)
    busy = (100 - used.idle - getattr(used, "iowait", 0.0)) / 100 * (os.cpu_count() or 1)
    return round(max(busy - (own_seconds() - own) / seconds, 0.0), 2)


def own_seconds() -> float:
    """Processor time of this process and those it started: threads that wait by spinning, too."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            times = process.cpu_times()
            total += times.user + times.system
    return total


def warnings_of(found: Limits, threads: int) -> tuple[str, ...]:
    """What makes times here hard to compare, in words."""
    told: list[str] = []
    if threads > math.ceil(found.cpus):
        told.append(
            f"{threads} threads have {found.cpus:g} processors' time here: set OMP_NUM_THREADS"
        )
    if found.governor not in (None, "performance"):
        told.append(f"the processor's governor is {found.governor!r}: its frequency will move")
    return tuple(told)


def busy(load: float) -> str:
    """The same of a load; empty where it is small."""
    return f"; others keep {load:.1f} processors busy" if load > BUSY else ""
