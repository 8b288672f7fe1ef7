"""Limits of either version of control groups, and what is warned about."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tokenpass.check import surroundings
from tokenpass.check.surroundings import (
    Limits,
    busy,
    limits,
    load_of_others,
    own_seconds,
    warnings_of,
)


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def _eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


def test_no_limits(tmp_path: Path) -> None:
    assert limits(tmp_path) == Limits(8.0, None, None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, Limits(1.5, None, None)),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, Limits(8.0, None, None)),
        (
            {
                "proc/self/cgroup": "0::/outer/inner\n",
                "sys/fs/cgroup/outer/cpu.max": "200000 100000",
                "sys/fs/cgroup/outer/inner/cpu.max": "400000 100000",
                "sys/fs/cgroup/outer/inner/memory.max": str(2**32),
                "sys/fs/cgroup/other/cpu.max": "100000 100000",
            },
            Limits(2.0, 4.0, None),
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/pod\n1:cpu,cpuacct:/pod\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": str(2**31),
            },
            Limits(3.0, 2.0, None),
        ),
        (
            {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"},
            Limits(8.0, None, "powersave"),
        ),
    ],
)
def test_limits(tmp_path: Path, files: dict[str, str], expected: Limits) -> None:
    assert limits(machine(tmp_path, files)) == expected


def test_what_is_warned_about() -> None:
    assert warnings_of(Limits(2.0, None, "performance"), 2) == ()
    assert warnings_of(Limits(1.5, None, None), 2) == ()
    (threads,) = warnings_of(Limits(1.0, None, None), 2)
    assert "2 threads have 1 processors' time" in threads and "OMP_NUM_THREADS" in threads
    (governor,) = warnings_of(Limits(2.0, None, "powersave"), 2)
    assert "'powersave'" in governor


def test_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times:
        idle, iowait, steal = 70.0, 5.0, 10.0

    monkeypatch.setattr(psutil, "cpu_times_percent", lambda seconds: Times)
    spent = iter([1.0, 1.25, 3.0, 9.0])
    monkeypatch.setattr(surroundings, "own_seconds", lambda: next(spent))
    assert load_of_others(0.5) == pytest.approx(1.5), "half a second of two processors is our own"
    assert load_of_others(0.5) == 0.0
    assert busy(2.0) == "; others keep 2.0 processors busy" and busy(0.1) == ""


def test_our_own_time_is_known() -> None:
    before = own_seconds()
    while own_seconds() - before < 0.05:
        sum(range(100_000))
    assert own_seconds() > before
