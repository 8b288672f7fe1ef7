"""Products by our own kernels: priced by their own rates where the profile has them."""

from __future__ import annotations

import pytest

from tokenpass.cost.group_time import GroupSizes, GroupTimer, WeightRead
from tokenpass.cost.rates import RateTable


def rated(toy, **more):
    tables = {"float32": RateTable(axes={"rows": (1, 8)}, values=(20, 5))}
    changes = {"weight_gb_per_s": {"few_rows": tables}, "kernel_launch_us": 30.0, **more}
    return toy.model_copy(update=changes)


def sizes(rows: float, dtype: str = "float32") -> GroupSizes:
    return GroupSizes("few_rows", dtype, 2e6 * rows, (1.0, rows, 1e3, 1e3), (), 4e6, calls=3)


def test_bytes_over_the_rate_at_those_rows_and_what_calls_cost(toy):
    timer = GroupTimer(rated(toy))
    assert timer.parts(sizes(1)) == (pytest.approx(4e6 / 20e9 + 3 * 2e-6), "memory")
    assert timer(sizes(8)) == pytest.approx(4e6 / 5e9 + 3 * 2e-6)
    assert timer(sizes(64)) == timer(sizes(8))


def test_without_a_rate_it_is_a_product_like_any_other(toy):
    like = GroupSizes("gemm", "float32", 2e6, (1.0, 1.0, 1e3, 1e3), (), 4e6, calls=3)
    assert GroupTimer(toy)(sizes(1)) == GroupTimer(toy)(like)
    assert GroupTimer(rated(toy))(sizes(1, "bfloat16")) == GroupTimer(toy)(like)


def test_reading_a_weight_by_kernel_and_library(toy):
    read = WeightRead(1, 1000, 1000, "float32", 4_000_000)
    assert read.library_seconds(toy) == pytest.approx(2e6 / 100e9 + 2e-6)
    assert read.kernel_seconds(rated(toy)) == pytest.approx(4e6 / 20e9 + 30e-6)
    assert read.kernel_seconds(toy) is None
    assert read.kernel_seconds(rated(toy, kernel_launch_us=None)) is None
    assert WeightRead(1, 8, 8, "float16", 128).kernel_seconds(rated(toy)) is None
