"""Seconds of one fusion group on one device: the roofline formula at given sizes.

time = max(flops / rate(shape), elements / rate, bytes / bandwidth(bytes)) + launch x calls

and for a kernel of ours that the profile knows: bytes / rate(rows) + launch x calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenpass.cost.device import WEIGHT_WORK, DeviceProfile, Waves
from tokenpass.cost.rates import RateTable
from tokenpass.ops.cost_record import Work

Bound = Literal["arithmetic", "memory", "launch"]

Rate = Callable[[Sequence[float]], float]

SHAPED: tuple[Work, ...] = (
    "gemm",
    "bmm",
    "conv",
    "attention",
    "masked_attention",
    *WEIGHT_WORK,
)

TILED: tuple[Work, ...] = ("gemm", "bmm", "conv", *WEIGHT_WORK)

# Library calls and generated kernels differ in what starting them costs.
CALLS: tuple[Work, ...] = (*SHAPED, "scatter", "sort")


@dataclass(frozen=True)
class GroupSizes:
    """What the formula needs of a group once its symbols have values."""

    work: Work
    dtype: str
    flops: float
    dims: tuple[float, ...]
    elements: tuple[tuple[Work, float], ...]
    moved_bytes: float
    calls: int = 1


class GroupTimer:
    """Evaluates the formula for one profile; builds each table's interpolator once."""

    def __init__(self, profile: DeviceProfile) -> None:
        self._profile = profile
        self._tables = {work: _tables(profile, work) for work in SHAPED}
        self._weights = {
            (work, dtype): table.interpolator()
            for work, tables in profile.weight_gb_per_s.items()
            for dtype, table in tables.items()
        }
        self._bandwidth = profile.bandwidth_gb_per_s.interpolator()

    def __call__(self, sizes: GroupSizes) -> float:
        """Seconds."""
        return self.parts(sizes)[0]

    def parts(self, sizes: GroupSizes) -> tuple[float, Bound]:
        """Seconds, and which term of the formula binds."""
        launch_us = self._profile.call_us if sizes.work in CALLS else self._profile.launch_us
        launch = launch_us * 1e-6 * sizes.calls
        known = self._weights.get((sizes.work, sizes.dtype))
        if known is not None:
            read = sizes.moved_bytes / (known(sizes.dims[1:2]) * 1e9)
            return read + launch, "launch" if launch >= read else "memory"
        work = self._arithmetic(sizes)
        memory = 0.0
        if sizes.moved_bytes > 0:
            memory = sizes.moved_bytes / (self._bandwidth((sizes.moved_bytes,)) * 1e9)
        longest = max(work, memory)
        if launch >= longest:
            return longest + launch, "launch"
        return longest + launch, "arithmetic" if work >= memory else "memory"

    def _arithmetic(self, sizes: GroupSizes) -> float:
        if sizes.work in SHAPED:
            return sizes.flops / (self._shape_rate(sizes) * 1e9) if sizes.flops > 0 else 0.0
        rates = self._profile.element_g_per_s
        return sum(
            count / ((rates.get(kind) or rates["pointwise"]) * 1e9)
            for kind, count in sizes.elements
        )

    def _shape_rate(self, sizes: GroupSizes) -> float:
        """GFLOP/s at these dims (batch, ...); on a GPU also the share of the last wave used."""
        tables = self._tables[sizes.work]
        rate = (tables.get(sizes.dtype) or tables["float32"])(sizes.dims[1:])
        if self._profile.waves is not None and sizes.work in TILED:
            rate *= _wave_efficiency(self._profile.waves, *sizes.dims[:3])
        return rate


def _wave_efficiency(waves: Waves, batch: float, m: float, n: float) -> float:
    """Share of the processors' time that real rows and columns use."""
    blocks = batch * math.ceil(m / waves.tile_m) * math.ceil(n / waves.tile_n)
    rounds = math.ceil(blocks / waves.processors)
    useful = batch * m * n / (waves.tile_m * waves.tile_n)
    return max(useful / (rounds * waves.processors), 1e-6)


def _tables(profile: DeviceProfile, work: Work) -> dict[str, Rate]:
    named: Mapping[Work, dict[str, RateTable]] = {
        "gemm": profile.gemm_gflop_per_s,
        "few_rows": profile.gemm_gflop_per_s,
        "listed_rows": profile.gemm_gflop_per_s,
        "bmm": profile.bmm_gflop_per_s or profile.gemm_gflop_per_s,
        "conv": profile.conv_gflop_per_s or profile.gemm_gflop_per_s,
        "attention": profile.attention_gflop_per_s,
        "masked_attention": profile.masked_attention_gflop_per_s or profile.attention_gflop_per_s,
    }
    return {dtype: table.interpolator() for dtype, table in named[work].items()}


@dataclass(frozen=True)
class WeightRead:
    """A product of few rows by a weight, `[outputs, width]` of a dtype as the profile names it."""

    rows: int
    outputs: int
    width: int
    dtype: str
    weight_bytes: int

    def library_seconds(self, profile: DeviceProfile) -> float:
        """What the library's product takes: its measured rate, which reads weights from memory."""
        tables = _tables(profile, "gemm")
        rate = (tables.get(self.dtype) or tables["float32"])((self.rows, self.outputs, self.width))
        flops = 2.0 * self.rows * self.outputs * self.width
        return flops / (rate * 1e9) + profile.call_us * 1e-6

    def kernel_seconds(self, profile: DeviceProfile) -> float | None:
        """What our kernel takes; None where the profile has not measured it on the dtype."""
        table = profile.weight_gb_per_s.get("few_rows", {}).get(self.dtype)
        if table is None or profile.kernel_launch_us is None:
            return None
        rate = table.interpolator()((float(self.rows),))
        return self.weight_bytes / (rate * 1e9) + profile.kernel_launch_us * 1e-6
