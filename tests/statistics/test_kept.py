"""What is kept of one call, against loops that follow the papers' words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenpass.statistics.histogram import Histogram
from tokenpass.statistics.kept import STATISTICS, Observed, core


def by_loops(hidden: Tensor) -> list[int]:
    """CoreInfer's steps 1 and 2 by magnitude, token by token."""
    counts = [0] * hidden.shape[1]
    for row in hidden.tolist():
        active = sorted((-abs(value), at) for at, value in enumerate(row) if value)
        for _, at in active[: math.floor(0.4 * len(active))]:
            counts[at] += 1
    return counts


def test_core_neurons() -> None:
    torch.manual_seed(0)
    for hidden in (
        torch.randn(300, 24),
        torch.randn(300, 24).relu(),
        torch.zeros(5, 24),
        -torch.rand(5, 24),
        torch.ones(5, 24),
        torch.randn(0, 24),
        torch.randn(40, 24).bfloat16(),
    ):
        found = core(Observed(hidden, neurons=True))
        assert found is not None and found.tolist() == by_loops(hidden.float())


def test_core_passes_over_what_is_no_number() -> None:
    nan, inf = float("nan"), float("inf")
    hidden = torch.tensor([[nan, 3.0, inf, 1.0, 2.0, 4.0, 5.0]])
    found = core(Observed(hidden, neurons=True))
    assert found is not None and found.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_each_statistic_reads_its_own_value() -> None:
    torch.manual_seed(0)
    hidden, gate, up = torch.randn(3, 20, 6)
    seen = Observed(hidden, gate, up, neurons=True)
    values = {one.name: one.of(seen) for one in STATISTICS}
    assert values["magnitude"] == Histogram.of(hidden)
    assert values["gate"] == Histogram.of(gate) and values["up"] == Histogram.of(up)
    plain = {one.name: one.of(Observed(hidden)) for one in STATISTICS}
    assert plain == {"magnitude": values["magnitude"], "gate": None, "up": None, "core": None}
