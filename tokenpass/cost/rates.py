"""Measured rates over shapes: a table that interpolates in log space and extrapolates sanely."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RateTable(BaseModel):
    """Rates (work per second) at the points of a grid, `values` in row-major order of `axes`.

    Between points the logarithm of the rate is linear in the logarithm of each coordinate (a
    power law, which is what tile and cache effects look like from afar). Outside the grid the
    rate of the nearest edge holds: time goes on in proportion to the work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    axes: dict[str, tuple[Positive, ...]]
    values: tuple[Positive, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, points in self.axes.items():
            if not points or any(a >= b for a, b in pairwise(points)):
                raise ValueError(f"axis {name!r} must hold increasing numbers, got {points}")
        expected = math.prod(len(points) for points in self.axes.values())
        if len(self.values) != expected:
            raise ValueError(f"expected {expected} values for these axes, got {len(self.values)}")
        return self

    def interpolator(self) -> Callable[[Sequence[float]], float]:
        """A function from coordinates, in the order of `axes`, to the rate there."""
        axes = [tuple(math.log(point) for point in points) for points in self.axes.values()]
        logs = [math.log(value) for value in self.values]
        strides = [math.prod(len(axis) for axis in axes[i + 1 :]) for i in range(len(axes))]

        def rate(point: Sequence[float]) -> float:
            cells = [
                _cell(axis, math.log(max(coordinate, 1.0)))
                for axis, coordinate in zip(axes, point, strict=True)
            ]
            total = 0.0
            for corner in product((0, 1), repeat=len(cells)):
                weight, offset = 1.0, 0
                for (low, fraction), side, stride in zip(cells, corner, strides, strict=True):
                    weight *= fraction if side else 1.0 - fraction
                    offset += (low + side) * stride if fraction or not side else 0
                if weight:
                    total += weight * logs[offset]
            return math.exp(total)

        return rate


def _cell(axis: tuple[float, ...], coordinate: float) -> tuple[int, float]:
    """The grid cell of a coordinate and the position in it, clamped to the table's edges."""
    if coordinate <= axis[0] or len(axis) == 1:
        return 0, 0.0
    if coordinate >= axis[-1]:
        return len(axis) - 1, 0.0
    low = bisect.bisect_right(axis, coordinate) - 1
    return low, (coordinate - axis[low]) / (axis[low + 1] - axis[low])
