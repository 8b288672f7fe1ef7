"""Measure a device profile in under a minute, on a machine that may be busy with other things.

Every case is timed once per round, rounds repeat until the time is up, and the fastest time of
each counts: another process only ever makes a call slower. What is left of such disturbance is
removed by the law that more work never takes less time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tokenpass.cost.device import DeviceProfile, device_fingerprint
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
from tokenpass.errors import UserError
from tokenpass.ops.cost_record import Work

Progress = Callable[[float, str], None]

# Work and seconds of the calls of one table, by grid point.
Measured = dict[tuple[int, ...], tuple[float, float]]

# One sample lasts at least this long; short calls are repeated inside it.
SAMPLE_SECONDS = 2e-4

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
) -> DeviceProfile:
    """Time the kernels of `device` for about `seconds`; `progress(share_done, what)` is called.

    Raises UserError for a device that is not a CPU or a CUDA GPU, or for too little time.
    """
    device = torch.device(device)
    scope = SCOPES.get(device.type)
    if scope is None:
        raise UserError(f"device: expected cpu or cuda, got {device.type!r}")
    if not seconds >= 1:
        raise UserError(f"seconds: expected at least 1, got {seconds!r}")
    todo = [*stream_cases(device), *element_cases(device)]
    for dtype, axes in scope.axes.items():
        todo += shape_cases(device, dtype, axes, scope.largest_flops)
    with torch.inference_mode():
        fastest = _fastest(todo, device, seconds, progress or (lambda share, what: None))
    return _profile(device, scope, todo, fastest)


def _fastest(
    todo: Sequence[Case], device: torch.device, seconds: float, progress: Progress
) -> list[float]:
    """Seconds per call of every case: the least over interleaved rounds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    start = time.perf_counter()
    fastest = [float("inf")] * len(todo)
    repeats = [1] * len(todo)
    rounds = 0
    while rounds < 2 or time.perf_counter() - start < seconds:
        for place, case in enumerate(todo):
            spent = time.perf_counter() - start
            if rounds >= 2 and spent > seconds:
                break
            elapsed = _sample(case, repeats[place], wait)
            fastest[place] = min(fastest[place], elapsed)
            repeats[place] = max(1, round(SAMPLE_SECONDS / fastest[place]))
            if place % 32 == 0:
                progress(min(spent / seconds, 1.0), f"round {rounds + 1}: {case.table}")
        rounds += 1
    progress(1.0, f"{rounds} rounds")
    return fastest


def _sample(case: Case, repeats: int, wait: Callable[[], None]) -> float:
    if case.warm:
        case.call()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        case.call()
    wait()
    return (time.perf_counter() - start) / repeats


def _profile(
    device: torch.device, scope: _Scope, todo: Sequence[Case], fastest: Sequence[float]
) -> DeviceProfile:
    measured: dict[tuple[str, str], Measured] = {}
    for case, seconds in zip(todo, fastest, strict=True):
        measured.setdefault((case.table, case.dtype), {})[case.point] = (case.work, seconds)

    def shaped(name: str) -> dict[str, RateTable]:
        return {
            dtype_name(dtype): _table(axes[name], measured[name, dtype_name(dtype)])
            for dtype, axes in scope.axes.items()
        }

    def one(name: str) -> tuple[float, float]:
        return measured[name, "float32"][()]

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
        element_g_per_s={name: _rate(one(name)) for name in ELEMENT_WORK},
        launch_us=round(one("launch")[1] * 1e6, 3),
        call_us=round(one("call")[1] * 1e6, 3),
    )


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
