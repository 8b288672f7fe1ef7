"""Which routers are found in front of projections and behind stacked experts, and which are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.harness import Graph, capture_calls
from tests.models.routed import (
    CHOSEN,
    EXPERTS,
    SIZE,
    WIDTH,
    BlockFfn,
    Gated,
    NullExperts,
    Routed,
    Stacked,
)
from tokenpass.graph.experts import ExpertRegion, expert_regions
from tokenpass.graph.projections import ProjectionRegion
from tokenpass.graph.routers import router_blocks
from tokenpass.graph.zeros import zero_regions
from tokenpass.pipeline.regions import static_inputs


def captured(module: nn.Module, rows: int = 2) -> Graph:
    (graph,) = capture_calls(module.eval(), [{"x": torch.randn(rows, WIDTH)}], fullgraph=True)
    return graph


def regions(module: nn.Module, rows: int = 2) -> list[ProjectionRegion]:
    graph = captured(module, rows)
    return zero_regions(graph.view.module.graph, static_inputs(graph.view.module, graph.captured))


def experts(module: nn.Module, rows: int = 2) -> list[ExpertRegion]:
    graph = captured(module, rows)
    return expert_regions(graph.view.module.graph, static_inputs(graph.view.module, graph.captured))


SPELLINGS = ("repeated", "expanded", "viewed", "activated in blocks", "normed by hand")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("rows", [1, 2])
def test_blocks_behind_a_router(spelling: str, rows: int) -> None:
    (found,) = regions(BlockFfn(spelling), rows)
    assert found.up is None and found.density == 0.5
    (factor,) = found.factors
    assert str(factor.expression).startswith("silu(a")
    assert (factor.part.start, factor.part.length) == (0, EXPERTS * SIZE)
    assert router_blocks(found) == (EXPERTS, SIZE)


@pytest.mark.parametrize("make", [Gated, NullExperts])
def test_both_projections_of_a_gated_block(make: Callable[[], Routed]) -> None:
    (found,) = regions(make())
    assert found.density == pytest.approx(CHOSEN / EXPERTS)
    assert {str(one.expression).split("(")[0] for one in found.factors} == {"silu", "a1"}


class Changed(Gated):
    """The router's weights, changed before they are used."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def chosen(self, x: Tensor) -> Tensor:
        return self.change(super().chosen(x))


def test_weights_that_are_never_zero() -> None:
    for change in (
        lambda r: r + 0.01,
        lambda r: F.layer_norm(r, (EXPERTS,)),
        lambda r: r.softmax(-1),
    ):
        assert not regions(Changed(change))


class Elsewhere(Gated):
    """`up` is handed out as well, so that it has to be computed whole."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        up = self.up(x)
        h = (F.silu(self.gate(x)) * up).view(-1, EXPERTS, SIZE) * self.chosen(x)[..., None]
        return self.down(h.flatten(-2)), up


def test_what_others_read_is_computed_whole() -> None:
    (found,) = regions(Elsewhere())
    assert [str(one.expression).split("(")[0] for one in found.factors] == ["silu"]
    assert found.gate is not None and "a" in str(found.gate)


class OtherBlocks(Gated):
    """Blocks of neurons that are turned over are no blocks of the projection's."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).view(-1, SIZE, EXPERTS).transpose(1, 2) * self.chosen(x)[..., None]
        return self.down(h.reshape(-1, EXPERTS * SIZE))


def test_neurons_in_another_order_are_computed_whole() -> None:
    found = regions(OtherBlocks())
    assert all(not one.factors and one.up is None for one in found)


@pytest.mark.parametrize("spelling", ["fused", "plain", "mT"])
@pytest.mark.parametrize("rows", [1, 2])
def test_stacked_experts(spelling: str, rows: int) -> None:
    (one,) = experts(Stacked(spelling), rows)
    assert (one.experts, one.size, one.rows) == (EXPERTS, SIZE, rows)
    assert one.density == pytest.approx(CHOSEN / EXPERTS)
    assert sorted(factor.start for factor in one.factors) == ([0, SIZE] if one.factors[1:] else [0])


def test_a_part_of_a_stack_is_no_parameter() -> None:
    assert not experts(Stacked("apart"))


class Unlike(Stacked):
    """Stacked experts with one step that is not as it should be."""

    def forward(self, x: Tensor) -> Tensor:
        r, each = self.chosen(x), x.expand(EXPERTS, -1, -1)
        if self.spelling == "own rows":
            each = each * torch.arange(EXPERTS, device=x.device)[:, None, None]
        h = torch.bmm(each, self.one.transpose(1, 2)).relu()
        y = torch.bmm(h, self.out.transpose(1, 2))
        if self.spelling == "behind a function":
            y = y.tanh()
        if self.spelling == "every weight":
            r = r + 0.01
        if self.spelling == "sum over rows":
            return (y * r.t().unsqueeze(-1)).sum(1)
        if self.spelling == "one weight for all":
            return (y * r[:1].t().unsqueeze(-1)).sum(0)
        return (y * r.t().unsqueeze(-1)).sum(0)


@pytest.mark.parametrize(
    "spelling",
    ["own rows", "behind a function", "every weight", "sum over rows", "one weight for all"],
)
def test_what_is_no_weighted_sum_of_experts(spelling: str) -> None:
    assert not experts(Unlike(spelling))
    assert experts(Unlike("as it should be"))
