"""Layers behind routers: exact, never stale, few rows by a guard, and reasons where they stay."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.models.harness import Graph, capture_calls, relative
from tests.models.routed import EXPERTS, SIZE, WIDTH, BlockFfn, Gated, NullExperts, Stacked
from tokenpass.edits import Edit
from tokenpass.errors import FallbackWarning
from tokenpass.options import read_options
from tokenpass.passes.activation_sparsity.routed_experts import RoutedExperts
from tokenpass.passes.base import RegionContext
from tokenpass.pipeline import Planned, make_plan
from tokenpass.pipeline.regions import static_inputs
from tokenpass.report import last_reports

LAYERS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "block ffn": (lambda: BlockFfn("viewed"), "natural_zeros", "8*128"),
    "block ffn, repeated": (lambda: BlockFfn("repeated"), "natural_zeros", "8*128"),
    "gated": (Gated, "natural_zeros", "2*128"),
    "null experts": (NullExperts, "natural_zeros", "2*128"),
    "stacked": (lambda: Stacked("fused"), "routed_experts", "2*128"),
    "stacked, plain": (lambda: Stacked("plain"), "routed_experts", "2*128"),
}


def ready(name: str) -> nn.Module:
    torch.manual_seed(3)
    return LAYERS[name][0]().eval()


def graph_of(model: nn.Module, x: Tensor) -> Graph:
    (graph,) = capture_calls(model, [{"x": x}], fullgraph=True)
    return graph


def planned(graph: Graph, **options: object) -> Planned:
    given = {"objective": "flops", "pack_memory": 1.0, **options}
    return make_plan(graph.view, graph.captured, read_options(given))


def edits(plan: Planned) -> list[Edit]:
    return [edit for edit in plan.plan.edits if edit.pass_name != "dead_tokens"]


@pytest.mark.parametrize("name", LAYERS)
def test_the_level_says_how_many_blocks_are_read(name: str) -> None:
    _, pass_name, level = LAYERS[name]
    plan = planned(graph_of(ready(name), torch.randn(1, WIDTH)))
    (edit,) = edits(plan)
    assert (edit.pass_name, edit.policy, edit.level) == (pass_name, "sparse_output_gemv", level)
    assert plan.exact and plan.plan.share < 0.7


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_results_are_as_near_to_float64_as_dense(name: str, rows: int) -> None:
    """Root mean square over seeds; then with other weights, written in place."""
    model = ready(name)
    options = {"objective": "flops", "pack_memory": 1.0, "lowering": "eager", "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", options=options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        for change in (1.0, 0.9):
            for parameter in model.parameters():
                parameter.mul_(change)
            exact = copy.deepcopy(model).double()
            off, own = 0.0, 0.0
            for _ in range(6):
                x = torch.randn(rows, WIDTH)
                wanted = [exact(x.double())]
                off += relative([run(x)], wanted) ** 2 / 6
                own += relative([model(x)], wanted) ** 2 / 6
            assert off**0.5 <= 2 * own**0.5 + torch.finfo(torch.float32).eps
    assert len(edits_of_reports()) == 1


def edits_of_reports() -> list[Edit]:
    (report,) = last_reports()
    return list(report.plan.edits)


def test_through_inductor() -> None:
    model = nn.Sequential(ready("stacked"), ready("gated"))
    options = {"objective": "flops", "pack_memory": 1.0, "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", options=options)
    x = torch.randn(1, WIDTH)
    with torch.no_grad():
        assert relative([run(x)], [model(x)]) < 1e-5
    assert {edit.pass_name for edit in edits_of_reports()} == {"natural_zeros", "routed_experts"}


@pytest.mark.parametrize("name", ["stacked", "gated"])
def test_many_rows_stay_dense_by_a_guard(name: str) -> None:
    model = ready(name)
    options = {"objective": "flops", "pack_memory": 1.0, "lowering": "eager", "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", dynamic=True, options=options)
    with torch.no_grad():
        for rows in (2, 3, 12, 2):
            x = torch.randn(rows, WIDTH)
            assert relative([run(x)], [model(x)]) < 1e-5
    few, many = last_reports()
    assert len(few.plan.edits) == 1 and not many.plan.edits
    assert {reason.code for reason in many.rejections} >= {"too_many_rows"}


@pytest.mark.parametrize("name", ["stacked", "gated"])
def test_experts_without_a_weight_are_not_read(name: str) -> None:
    """NaN in those that no row chose does not reach the result; dense multiplies it by zero."""
    model, x = ready(name), torch.randn(1, WIDTH)
    with torch.no_grad():
        unused = int(model.chosen(x)[0].argmin())
        wanted = model(x)
        at = slice(unused * SIZE, (unused + 1) * SIZE)
        if isinstance(model, Stacked):
            model.both[unused], model.out[unused] = torch.nan, torch.nan
        else:
            model.up.weight[at], model.down.weight[:, at] = torch.nan, torch.nan  # type: ignore[union-attr, index]
        assert model(x).isnan().all()
    graph = graph_of(model, x)
    plan = planned(graph)
    assert plan.module is not None and relative(graph.run(plan.module), [wanted]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["stacked", "gated", "block ffn"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model, x = ready(name).to(dtype), torch.randn(2, WIDTH).to(dtype)
    graph = graph_of(model, x)
    plan = planned(graph)
    exact = copy.deepcopy(model).double()(x.double()).detach()
    own = relative(graph.dense(), [exact])
    assert edits(plan) and plan.module is not None
    assert relative(graph.run(plan.module), [exact]) <= 2 * own + torch.finfo(dtype).eps


def test_a_value_that_is_written_to_stays_dense() -> None:
    graph = graph_of(ready("stacked"), torch.randn(1, WIDTH))
    module = graph.view.module
    static = static_inputs(module, graph.captured)
    (one,), _ = RoutedExperts().replacements(RegionContext(module, static, {}))
    for node in (one.node, one.origin, one.origin.all_input_nodes[0]):
        touched = RegionContext(module, static, {node: one.origin})
        found, refused = RoutedExperts().replacements(touched)
        assert not found and [reason.code for reason in refused] == ["mutated_alias"]


def test_double_precision_stays_dense() -> None:
    plan = planned(graph_of(ready("stacked").double(), torch.randn(1, WIDTH).double()))
    assert not edits(plan) and {r.code for r in plan.plan.rejections} >= {"region_dtype"}


def test_a_copy_of_the_last_stack_counts() -> None:
    graph = graph_of(ready("stacked"), torch.randn(1, WIDTH))
    assert planned(graph).packed_bytes == EXPERTS * SIZE * WIDTH * 4
    assert {r.code for r in planned(graph, pack_memory=0).plan.rejections} >= {"pack_memory"}
