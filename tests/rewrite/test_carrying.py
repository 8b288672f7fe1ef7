"""Graphs with carried inputs and outputs: the same values, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

from tests.models.harness import capture_calls
from tokenpass.graph.projections import in_parts, projection_region, projections
from tokenpass.graph.view import handed_on
from tokenpass.ops.pointwise import parse
from tokenpass.pipeline.regions import static_inputs
from tokenpass.rewrite.carrying import given_nodes, with_carried
from tokenpass.rewrite.replacing import Given, Replacement, replaced
from tokenpass.tracing import calls, placeholders

aten = torch.ops.aten


class Small(nn.Module):
    """A product that is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.linear(x))
        return y * 2.0, y.sum()


def column_sums(values: Tensor) -> Tensor:
    return values.float().sum(0)


def test_what_is_given_and_kept() -> None:
    torch.manual_seed(0)
    (graph,) = capture_calls(Small(), [{"x": torch.randn(2, 3, 6)}])
    module = graph.view.module
    (relu,) = (n for n in calls(module.graph) if n.target is aten.relu.default)
    (linear,) = relu.all_input_nodes
    given = Given("some", "place", column_sums, torch.ones(4))
    scaled = Replacement(
        relu,
        relu,
        "place",
        "some",
        "0.5",
        lambda c: c.call(aten.mul.Tensor, c.call(aten.relu.default, c[linear]), c.given(given)),
        (),
    )
    edited = replaced(module, [scaled], 0)
    assert len(given_nodes(edited)) == 1
    plain = [value.clone() for value in graph.run(edited)]
    (kept,) = (n for n in calls(edited.graph) if n.target is aten.relu.default)
    made, found = with_carried(edited, [(kept, column_sums)])
    assert [one.site for one in found] == ["place"] and not given_nodes(made)
    assert len(placeholders(made)) == len(placeholders(edited)) + 1
    inputs = graph.inputs
    first, total, sums = Interpreter(made).run(*inputs, torch.ones(4))
    assert torch.equal(first, plain[0]) and torch.equal(total, plain[1])
    values = Interpreter(module).run(*inputs)[0] / 2
    assert torch.allclose(sums, values.flatten(0, 1).sum(0))
    halved = Interpreter(made).run(*inputs, torch.full((4,), 0.5))
    assert torch.allclose(halved[0], plain[0] / 2) and torch.equal(halved[2], sums)


class Caching(nn.Module):
    """Hands on a cache that grew, one that slid, one that was computed anew, and none."""

    def forward(self, x: Tensor, k: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        grown = torch.cat([k, x[:, None]], dim=1)
        slid = torch.cat([v, x[:, None]], dim=1)[:, 1:]
        return grown, slid.contiguous(), w * 2.0, torch.cat([x * 2.0, x + 1.0])


def test_caches_that_are_handed_on() -> None:
    cache = torch.randn(1, 5, 4)
    inputs = {"x": torch.randn(1, 4), "k": cache, "v": cache.clone(), "w": cache.clone()}
    (graph,) = capture_calls(Caching(), [inputs])
    module = graph.view.module
    caches = [node for node in placeholders(module) if node.meta["val"].dim() == 3]
    outputs = list(next(n for n in module.graph.nodes if n.op == "output").args[0])
    assert handed_on(module, caches) == {outputs[0], outputs[1]}
    assert handed_on(module, []) == frozenset()


def written_out(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))


class Gated(nn.Module):
    """A gated MLP."""

    def __init__(self, act: Callable[[Tensor], Tensor], beside: bool = False) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.act, self.beside = act, beside

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.gate(x)
        h = self.act(gate) * self.up(x)
        return self.down(h), gate.sum() if self.beside else h.sum()


def parts_of(model: nn.Module) -> tuple[GraphModule, list[tuple[str, str]]]:
    (graph,) = capture_calls(model, [{"x": torch.randn(3, 6)}])
    module = graph.view.module
    static = static_inputs(module, graph.captured)
    named = projections(module.graph, static)
    (down,) = (node for node, site in named.items() if site.startswith("down"))
    region = projection_region(down, static)
    assert region is not None
    found = in_parts(region, static)
    for one in found:
        assert parse(str(one.expression)) == one.expression
    return module, [(named[one.part.projection], str(one.expression)) for one in found]


class Alone(Gated):
    """Nothing but the MLP."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.down(self.act(self.gate(x)) * self.up(x))


def test_a_product_in_parts() -> None:
    for act in (F.silu, written_out):
        _, found = parts_of(Alone(act))
        assert {site for site, _ in found} == {"gate:projection", "up:projection"}
        assert len(found) == 2


def test_what_is_read_elsewhere_is_no_part() -> None:
    for beside in (True, False):
        _, found = parts_of(Gated(F.silu, beside))
        assert found == []


def test_a_sum_is_no_product() -> None:
    class Summed(Alone):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.relu(self.gate(x) + self.up(x)))

    _, found = parts_of(Summed(F.relu))
    assert found == []
