"""What is observed of a graph: padded rows, activations, and values that are written to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenpass.calibration.watching import Watcher, bends, real_rows
from tokenpass.ops.pointwise import parse
from tokenpass.statistics import Histogram, SiteStatistics

WIDTH = 8


def watched(model: nn.Module, *inputs: Any) -> dict[str, SiteStatistics]:
    """What one call of a model hands on; the outputs are the model's own."""
    seen: dict[str, SiteStatistics] = {}
    watcher = Watcher(lambda name, found: seen.update({name: found}))
    with torch.no_grad():
        expected = model(*inputs)
        assert torch.equal(torch.compile(model, backend=watcher)(*inputs), expected)
    assert not watcher.errors and not watcher.left_out
    return seen


def test_rows_that_are_tokens() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = [True, True, False, True, False, False]
    for shape in ((2, 3, 4), (6, 4)):
        rows = real_rows(torch.zeros(shape), mask)
        assert rows is not None and rows.tolist() == expected
    for shape in ((2, 4), (3, 2, 4), (2, 1, 4), (5, 4)):
        assert real_rows(torch.zeros(shape), mask) is None
    assert real_rows(torch.zeros(2, 3, 4), None) is None


def test_activations_are_told_from_norms() -> None:
    for text in ("silu(a0)", "mul(relu(a0), a1)", "mul(a0, sigmoid(a1))", "maximum(a0, 0.0)"):
        assert bends(parse(text)), text
    for text in ("a0", "mul(mul(a0, rsqrt(a1)), a2)", "add(a0, a1)", "mul(a0, 0.5)"):
        assert not bends(parse(text)), text


def test_a_gate_that_is_written_to_is_left_out() -> None:
    class Gated(nn.Module):
        def __init__(self, writes: bool) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
            self.writes = writes

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            hidden = F.silu(gate) * self.up(x)
            if self.writes:
                gate.zero_()  # after the product was made, before the projection runs
            return self.down(hidden)

    torch.manual_seed(0)
    x, gate = torch.randn(5, WIDTH), torch.randn(5, 12)
    for writes in (False, True):
        model, seen = Gated(writes).eval(), {}
        watcher = Watcher(lambda name, found, seen=seen: seen.update({name: found}))
        with torch.no_grad():
            torch.compile(model, backend=watcher)(x, gate.clone())
            up, bent = model.up(x), F.silu(gate)
        site = seen["down:projection"]
        assert site.magnitude == Histogram.of(bent * up)
        assert site.gate == (None if writes else Histogram.of(bent))
        assert site.up == (None if writes else Histogram.of(up))


def test_a_gate_is_kept_though_the_graph_drops_its_parts_early() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12)
            self.down, self.between = nn.Linear(12, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.gelu(self.gate(x)) * self.up(x)
            for _ in range(3):
                x = self.between(x)
            return self.down(hidden) + x

    torch.manual_seed(0)
    model, x = Late().eval(), torch.randn(5, WIDTH)
    seen = watched(model, x)
    assert list(seen) == [
        "gate:projection",
        "up:projection",
        *(f"between:projection{mark}" for mark in ("", "#1", "#2")),
        "down:projection",
    ]
    site = seen["down:projection"]
    with torch.no_grad():
        assert site.up == Histogram.of(model.up(x))
        assert site.gate is not None and site.gate.rows == 5
