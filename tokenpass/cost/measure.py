"""Measure a device profile in under a minute, on a machine that may be busy with other things.

Every case is timed in rounds, and the fastest time of each counts: another process only ever
makes a call slower. What is left of such disturbance is removed by the law that more work never
takes less time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tokenpass.cost.device import WEIGHT_WORK, DeviceProfile, device_fingerprint
from tokenpass.cost.measure_cases import (
    COARSE,
    FINE,
    MOVED_BYTES,
    Axes,
    Case,
    element_cases,
    shape_cases,
    stream_cases,
)
from tokenpass.cost.rates import RateTable
from tokenpass.cost.sizes import dtype_name
from tokenpass.cost.stopwatch import Progress, fastest, one_thread, thread_gains
from tokenpass.errors import UserError
from tokenpass.ops.cost_record import Work

# Work and seconds of the calls of one table, by grid point.
Measured = dict[tuple[int, ...], tuple[float, float]]

ELEMENT_WORK: tuple[Work, ...] = ("pointwise", "special", "reduction", "gather", "scatter", "sort")


@dataclass(frozen=True)
class _Scope:
    """What is measured on a kind of device: dtypes with their grids, and the largest call."""

    axes: Mapping[torch.dtype, Axes]
    largest_flops: float


SCOPES: Mapping[str, _Scope] = {
    "cpu": _Scope({torch.float32: FINE, torch.bfloat16: COARSE}, 3.5e9),
    "cuda": _Scope({torch.bfloat16: FINE, torch.float32: COARSE}, 1e12),
}


def measure(
    device: torch.device | str,
    progress: Progress | None = None,
    seconds: float = 45.0,
    kernels: Callable[[torch.device], Iterable[Case]] = lambda device: (),
) -> DeviceProfile:
    """Time the kernels of `device` for about `seconds`; `progress(share_done, what)` is called.

    `kernels` gives the cases of our own: tables named by their work, over rows, whose work is the
    bytes that are read of a weight; and "kernel_launch", a call that does next to nothing.
    Raises UserError for a device that is not a CPU or a CUDA GPU, or for too little time.
    """
    device = torch.device(device)
    scope = SCOPES.get(device.type)
    if scope is None:
        raise UserError(f"device: expected cpu or cuda, got {device.type!r}")
    if not seconds >= 1:
        raise UserError(f"seconds: expected at least 1, got {seconds!r}")
    todo = [*stream_cases(device), *element_cases(device), *kernels(device)]
    for dtype, axes in scope.axes.items():
        todo += shape_cases(device, dtype, axes, scope.largest_flops)
    report = progress or (lambda share, what: None)
    with torch.inference_mode():
        timed = _on_cuda if device.type == "cuda" else _on_cpu
        times = timed(todo, seconds, report)
    report(1.0, "measured")
    return _profile(device, scope, todo, times)


def _on_cuda(todo: Sequence[Case], seconds: float, progress: Progress) -> list[float]:
    return fastest(todo, seconds, progress, wait=torch.cuda.synchronize)


def _on_cpu(todo: Sequence[Case], seconds: float, progress: Progress) -> list[float]:
    """Seconds per call with all threads: one thread's processor time over the threads' gain.

    A gain belongs to the first coordinate (rows, queries, bytes), on which it depends most, and
    never falls where rows or queries grow.
    """
    with one_thread():
        alone = fastest(
            todo, 0.6 * seconds, lambda share, what: progress(0.6 * share, what), time.process_time
        )
    probes = [place for place, case in enumerate(todo) if case.probe]
    gains = thread_gains(
        [todo[place] for place in probes],
        [alone[place] for place in probes],
        0.4 * seconds,
        lambda share, what: progress(0.6 + 0.4 * share, what),
    )
    known: dict[tuple[str, str, int], float] = {}
    for place, gain in zip(probes, gains, strict=True):
        table, dtype, first = _gain_key(todo[place])
        before = known.get((table, dtype, first), 1.0)
        known[table, dtype, first] = max(before, gain)
    return [
        seconds_alone / _gain(known, case) for case, seconds_alone in zip(todo, alone, strict=True)
    ]


def _gain_key(case: Case) -> tuple[str, str, int]:
    return case.table, case.dtype, case.point[0] if case.point else 0


def _gain(known: Mapping[tuple[str, str, int], float], case: Case) -> float:
    table, dtype, first = _gain_key(case)
    if table not in FINE:
        return known[table, dtype, first]
    return max(
        gain
        for (other, kind, place), gain in known.items()
        if (other, kind) == (table, dtype) and place <= first
    )


def _profile(
    device: torch.device, scope: _Scope, todo: Sequence[Case], times: Sequence[float]
) -> DeviceProfile:
    measured: dict[tuple[str, str], Measured] = {}
    for case, seconds in zip(todo, times, strict=True):
        measured.setdefault((case.table, case.dtype), {})[case.point] = (case.work, seconds)

    def shaped(name: str) -> dict[str, RateTable]:
        return {
            dtype_name(dtype): _table(axes[name], measured[name, dtype_name(dtype)])
            for dtype, axes in scope.axes.items()
        }

    def one(name: str) -> tuple[float, float]:
        return measured[name, "float32"][()]

    launch = measured.get(("kernel_launch", "float32"))
    return DeviceProfile(
        name=f"measured {device.type}",
        kind="cuda" if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads() if device.type == "cpu" else 1,
        fingerprint=device_fingerprint(device),
        gemm_gflop_per_s=shaped("gemm"),
        bmm_gflop_per_s=shaped("bmm"),
        conv_gflop_per_s=shaped("conv"),
        attention_gflop_per_s=shaped("attention"),
        masked_attention_gflop_per_s=shaped("masked_attention"),
        bandwidth_gb_per_s=_table({"bytes": MOVED_BYTES}, measured["bandwidth", "float32"]),
        weight_gb_per_s=_weights(measured),
        element_g_per_s={name: _rate(one(name)) for name in ELEMENT_WORK},
        launch_us=round(one("launch")[1] * 1e6, 3),
        call_us=round(one("call")[1] * 1e6, 3),
        kernel_launch_us=None if launch is None else round(launch[()][1] * 1e6, 3),
    )


def _weights(
    measured: Mapping[tuple[str, str], Measured],
) -> dict[Work, dict[str, RateTable]]:
    """The bytes per second of our own kernels, by work and dtype, over the rows that were timed."""
    found: dict[Work, dict[str, RateTable]] = {}
    for work in WEIGHT_WORK:
        for (table, dtype), times in measured.items():
            if table == work:
                rows = sorted(point[0] for point in times)
                found.setdefault(work, {})[dtype] = _table({"rows": rows}, times)
    return found


def _rate(measured: tuple[float, float]) -> float:
    """Units of 1e9 per second, four digits."""
    work, seconds = measured
    return float(f"{work / seconds / 1e9:.4g}")


def _table(axes: Mapping[str, Sequence[int]], measured: Measured) -> RateTable:
    """The grid of rates; a point too large to time has the rate of a smaller one (saturated)."""
    points = _grid(list(axes.values()))
    per_work = {point: measured[point] for point in points if point in measured}
    rates = {
        point: _rate((work, _least(point, work, per_work))) for point, (work, _) in per_work.items()
    }
    values = [rates[_nearest_known(point, list(axes.values()), rates)] for point in points]
    return RateTable(
        axes={name: tuple(float(p) for p in grid) for name, grid in axes.items()},
        values=tuple(values),
    )


def _nearest_known(
    point: tuple[int, ...], axes: Sequence[Sequence[int]], known: Collection[tuple[int, ...]]
) -> tuple[int, ...]:
    """Go down the longest axis until a timed point is reached; the first axis goes last."""
    while point not in known:
        axis = max(range(len(point)), key=lambda place: point[place] if place else 0)
        lower = axes[axis][list(axes[axis]).index(point[axis]) - 1]
        point = (*point[:axis], lower, *point[axis + 1 :])
    return point


def _least(
    point: tuple[int, ...],
    work: float,
    measured: Measured,
) -> float:
    """The least time of this point and of every point that is at least as large in all axes."""
    return min(
        seconds
        for other, (other_work, seconds) in measured.items()
        if other_work >= work and all(a <= b for a, b in zip(point, other, strict=True))
    )


def _grid(axes: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    grid: list[tuple[int, ...]] = [()]
    for axis in axes:
        grid = [(*point, coordinate) for point in grid for coordinate in axis]
    return grid
