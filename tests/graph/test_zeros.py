"""Which projections are found to meet natural zeros, and which are not, whatever the spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.harness import capture_calls
from tokenpass.graph.projections import ProjectionRegion
from tokenpass.graph.zeros import zero_regions
from tokenpass.pipeline.regions import static_inputs

WIDTH, ENTRIES = 6, 10


class Mlp(nn.Module):
    """A plain or gated MLP with an activation spelt in some way."""

    def __init__(self, act: Callable[..., Tensor], kind: str = "plain") -> None:
        super().__init__()
        self.act, self.kind = act, kind
        self.gate = nn.Linear(WIDTH, ENTRIES)
        self.up = nn.Linear(WIDTH, ENTRIES)
        self.both = nn.Linear(WIDTH, 2 * ENTRIES, bias=False)
        self.down = nn.Linear(ENTRIES, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "plain":
            return self.down(self.act(self.up(x)))
        if self.kind == "gated":
            return self.down(self.act(self.gate(x), self.up(x)))
        if self.kind == "chunk":
            gate, up = self.both(x).chunk(2, -1)
        elif self.kind == "split":
            up, gate = torch.split(self.both(x), ENTRIES, -1)
        else:
            both = self.both(x)
            gate, up = both[..., :ENTRIES], both[..., ENTRIES:]
        return self.down(self.act(gate, up))


def regions(module: nn.Module, *inputs: Tensor) -> list[ProjectionRegion]:
    graph = capture_calls(lambda **call: module(*call.values()), [dict(enumerate_names(inputs))])[0]
    return zero_regions(graph.view.module.graph, static_inputs(graph.view.module, graph.captured))


def enumerate_names(values: tuple[Tensor, ...]) -> list[tuple[str, Tensor]]:
    return [(f"x{at}", value) for at, value in enumerate(values)]


PLAIN = {
    "relu": (F.relu, "relu(a0)"),
    "squared": (lambda x: F.relu(x) ** 2, "square(relu(a0))"),
    "squared product": (lambda x: F.relu(x) * F.relu(x), "mul(relu(a0), relu(a0))"),
    "cubed": (lambda x: F.relu(x).pow(3), "pow(relu(a0), 3.0)"),
    "clamp": (lambda x: x.clamp(min=0), "maximum(a0, 0.0)"),
    "relu6": (F.relu6, None),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 4.0), None),
    "threshold": (lambda x: F.threshold(x, 0.3, 0.0), None),
    "where": (lambda x: torch.where(x > 0.2, x, 0.0), None),
    "below": (lambda x: torch.where(x < 0.2, torch.zeros(()), x), None),
    "scaled": (lambda x: 3 * F.relu(x) / 2, None),
    "gelu of relu": (lambda x: F.gelu(F.relu(x), approximate="tanh"), None),
    "shifted": (lambda x: F.relu(x - x.mean(-1, keepdim=True)), "relu(sub(a0, a1))"),
    "statistics": (
        lambda x: F.gelu(F.relu(x - (x.mean(-1, keepdim=True) + 1.6 * x.std(-1, keepdim=True)))),
        "gelu(relu(sub(a0, add(a1, mul(a2, 1.600000023841858)))))",
    ),
    "cast": (lambda x: F.relu(x).to(torch.float64).to(torch.float32), "relu(a0)"),
    "turned": (lambda x: F.relu(x).transpose(-1, -2).reshape(x.shape), "a0"),
    "shaped": (lambda x: F.relu(x.reshape(-1, ENTRIES)).view(x.shape), "relu(a0)"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_zeros_are_found(name: str) -> None:
    act, text = PLAIN[name]
    (found,) = regions(Mlp(act), torch.randn(1, 3, WIDTH))
    assert (found.rows, found.entries) == (3, ENTRIES)
    assert found.up is None
    assert text is None or str(found.expression).startswith(text)


NOT = {
    "gelu": F.gelu,
    "silu": F.silu,
    "leaky": F.leaky_relu,
    "shifted": lambda x: F.relu(x) + 0.1,
    "bias": lambda x: F.relu(x) + x,
    "sigmoid": lambda x: torch.sigmoid(F.relu(x)),
    "exp": lambda x: torch.exp(F.relu(x)),
    "softmax": lambda x: torch.softmax(F.relu(x), -1),
    "normed": lambda x: F.layer_norm(F.relu(x), (ENTRIES,)),
    "bounded": lambda x: x.clamp(min=0.1),
    "difference": lambda x: F.relu(x) - F.relu(-x),
    "division": lambda x: x / (F.relu(x) + 1),
    "summed": lambda x: F.relu(x).cumsum(-1),
}


@pytest.mark.parametrize("name", NOT)
def test_what_is_not_zero_is_not_found(name: str) -> None:
    assert not regions(Mlp(NOT[name]), torch.randn(1, 3, WIDTH))


@pytest.mark.parametrize("kind", ["gated", "chunk", "split", "slice"])
@pytest.mark.parametrize("turned", [False, True])
def test_gates(kind: str, turned: bool) -> None:
    def act(gate: Tensor, up: Tensor) -> Tensor:
        return up * F.relu(gate) if turned else F.relu(gate) * up

    (found,) = regions(Mlp(act, kind), torch.randn(1, 1, WIDTH))
    assert found.up is not None and found.gate is not None
    assert str(found.gate).startswith("relu(a")
    start = 0 if kind in ("gated", "split") else ENTRIES
    assert (found.up.start, found.up.length) == (start, ENTRIES)


def test_a_gate_with_more_factors() -> None:
    scale = nn.Parameter(torch.randn(ENTRIES))

    def act(gate: Tensor, up: Tensor) -> Tensor:
        return scale * up * F.relu(gate).square()

    (found,) = regions(Mlp(act, "gated"), torch.randn(1, 1, WIDTH))
    assert found.up is not None and "square(relu(" in str(found.gate)


class TwoReaders(Mlp):
    """`up` is handed out as well, so that it has to be computed whole."""

    def forward(self, x: Tensor) -> Any:
        up = self.up(x)
        return self.down(F.relu(self.gate(x)) * up), up


def test_a_projection_that_others_read_is_computed_whole() -> None:
    (found,) = regions(TwoReaders(F.relu), torch.randn(1, 1, WIDTH))
    assert found.up is None and found.gate is None


def test_a_norm_behind_the_product_needs_all_of_it() -> None:
    """Its statistics read the product, so that the second projection is computed in any case."""

    def act(gate: Tensor, up: Tensor) -> Tensor:
        h = F.relu(gate).square() * up
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)

    (found,) = regions(Mlp(act, "gated"), torch.randn(1, 1, WIDTH))
    assert found.up is None and "rsqrt" in str(found.expression)


def test_zeros_of_the_wrong_factor() -> None:
    """silu(g) * relu(u): u has the zeros, and g's projection is not behind a plain factor."""

    def act(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * F.relu(up)

    (found,) = regions(Mlp(act, "gated"), torch.randn(1, 1, WIDTH))
    assert found.up is None


def test_a_weight_that_is_computed_is_no_parameter() -> None:
    class Computed(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(self.up(x)), self.down.weight * 2)

    assert not regions(Computed(F.relu), torch.randn(1, 1, WIDTH))
    given = torch.randn(WIDTH, ENTRIES)
    module = Mlp(F.relu)
    assert not regions(Given(module), torch.randn(1, 1, WIDTH), given)


class Given(nn.Module):
    """A weight that comes with the call."""

    def __init__(self, inner: Mlp) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(F.relu(self.inner.up(x)), weight)
