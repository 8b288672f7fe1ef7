"""Measure a device profile in under a minute, on a machine that may be busy with other things.

Every case is timed once per round, rounds repeat until the time is up, and the fastest time of
each counts: another process only ever makes a call slower. What is left of such disturbance is
removed by the law that more work never takes less time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence

import torch

from tokenpass.cost import measure_cases as cases
from tokenpass.cost.device import DeviceProfile, device_fingerprint
from tokenpass.cost.measure_cases import Case
from tokenpass.cost.rates import RateTable
from tokenpass.errors import UserError
from tokenpass.ops.cost_record import Work

Progress = Callable[[float, str], None]

# One sample lasts at least this long; short calls are repeated inside it.
SAMPLE_SECONDS = 2e-4

ELEMENT_WORK: tuple[Work, ...] = ("pointwise", "special", "reduction", "gather", "scatter", "sort")

SHAPE_AXES = {
    "gemm": {"m": cases.GEMM_M, "n": cases.GEMM_NK, "k": cases.GEMM_NK},
    "bmm": {"m": cases.BMM_MN, "n": cases.BMM_MN, "k": cases.BMM_K},
    "conv": {"m": (196, 784), "n": (768,), "k": (768,)},
    "attention": {"queries": cases.QUERIES, "keys": cases.KEYS, "head_dim": cases.HEAD_DIMS},
    "masked_attention": {
        "queries": cases.QUERIES,
        "keys": cases.KEYS,
        "head_dim": cases.HEAD_DIMS,
    },
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
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: expected cpu or cuda, got {device.type!r}")
    if not seconds >= 1:
        raise UserError(f"seconds: expected at least 1, got {seconds!r}")
    todo = [
        *cases.shape_cases(device, torch.float32),
        *cases.stream_cases(device),
        *cases.element_cases(device),
    ]
    with torch.inference_mode():
        fastest = _fastest(todo, device, seconds, progress or (lambda share, what: None))
    return _profile(device, todo, fastest)


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
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        case.call()
    wait()
    return (time.perf_counter() - start) / repeats


def _profile(device: torch.device, todo: Sequence[Case], fastest: Sequence[float]) -> DeviceProfile:
    by_table: dict[str, dict[tuple[int, ...], tuple[float, float]]] = {}
    for case, seconds in zip(todo, fastest, strict=True):
        by_table.setdefault(case.table, {})[case.point] = (case.work, seconds)
    tables = {name: {"float32": _table(axes, by_table[name])} for name, axes in SHAPE_AXES.items()}
    rates: dict[Work, float] = {name: _rate(by_table[name][()]) for name in ELEMENT_WORK}
    return DeviceProfile(
        name=f"measured {device.type}",
        kind="cuda" if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads() if device.type == "cpu" else 1,
        fingerprint=device_fingerprint(device),
        gemm_gflop_per_s=tables["gemm"],
        bmm_gflop_per_s=tables["bmm"],
        conv_gflop_per_s=tables["conv"],
        attention_gflop_per_s=tables["attention"],
        masked_attention_gflop_per_s=tables["masked_attention"],
        bandwidth_gb_per_s=_table({"bytes": cases.MOVED_BYTES}, by_table["bandwidth"]),
        element_g_per_s=rates,
        launch_us=by_table["launch"][()][1] * 1e6,
        call_us=by_table["call"][()][1] * 1e6,
    )


def _rate(measured: tuple[float, float]) -> float:
    """Units of 1e9 per second, four digits."""
    work, seconds = measured
    return float(f"{work / seconds / 1e9:.4g}")


def _table(
    axes: dict[str, Sequence[int]], measured: dict[tuple[int, ...], tuple[float, float]]
) -> RateTable:
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
    measured: dict[tuple[int, ...], tuple[float, float]],
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
