"""few_rows: the same numbers, where the profile has measured a gain, and the reasons elsewhere."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.harness import Graph, capture_calls, relative
from tokenpass.cost.device import DeviceProfile, shipped_profile
from tokenpass.cost.rates import RateTable
from tokenpass.errors import FallbackWarning
from tokenpass.options import read_options
from tokenpass.pipeline import Planned, make_plan
from tokenpass.plan.plan_file import plan_to_yaml
from tokenpass.report import last_reports

WIDTH, OUTPUTS = 48, 130


class Block(nn.Module):
    """A linear layer with an activation, a bias and a residual sum behind it; one without."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, OUTPUTS)
        self.down = nn.Linear(OUTPUTS, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def profile(factor: float = 1e3, dtypes: tuple[str, ...] = ("float32",), **more: Any):
    """The shipped profile, with kernels of ours `factor` times as fast as one GB/s."""
    table = RateTable(axes={"rows": (1.0, 8.0)}, values=(factor, factor))
    rates = {"few_rows": dict.fromkeys(dtypes, table)}
    changes = {"weight_gb_per_s": rates, "kernel_launch_us": 0.0, **more}
    return shipped_profile("generic-cpu").model_copy(update=changes)


def saved(found: DeviceProfile, tmp_path: Path) -> str:
    path = tmp_path / "profile.yaml"
    found.save(path)
    return str(path)


def graph_of(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> Graph:
    (graph,) = capture_calls(model.to(dtype), [{"x": torch.randn(*shape).to(dtype)}])
    return graph


def planned(graph: Graph, device: str, **options: Any) -> Planned:
    config = read_options({"device_profile": device, **options})
    return make_plan(graph.view, graph.captured, config)


def block() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()


def linears(plan: Planned) -> list[str]:
    return [edit.site for edit in plan.plan.edits if edit.pass_name == "few_rows"]


def codes(plan: Planned) -> list[str]:
    return [
        one.code
        for one in plan.plan.rejections
        if "few rows" in str(one) or "our kernel" in str(one)
    ]


@pytest.mark.parametrize("shape", [(1, WIDTH), (1, 1, WIDTH), (2, 4, WIDTH), (WIDTH,)])
def test_as_near_to_float64_as_dense(tmp_path: Path, shape: tuple[int, ...]) -> None:
    graph = graph_of(block(), *shape)
    plan = planned(graph, saved(profile(), tmp_path))
    assert len(linears(plan)) == 2 and plan.exact and plan.module is not None
    targets = [node.target for node in plan.module.graph.nodes if node.op == "call_function"]
    few = torch.ops.tokenpass.few_rows_linear.default
    assert targets.count(few) == 2
    # bias, activation and residual sum are the kernels' own
    assert not {torch.ops.aten.gelu.default, torch.ops.aten.add.Tensor} & set(targets)
    dense, found = graph.dense(), graph.run(plan.module)
    assert relative(found, dense) < 1e-6


def test_what_others_read_is_computed(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(WIDTH, OUTPUTS)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.up(x)
            return y, torch.relu(y)

    torch.manual_seed(0)
    graph = graph_of(Shared().eval(), 1, WIDTH)
    plan = planned(graph, saved(profile(), tmp_path))
    assert len(linears(plan)) == 1 and plan.module is not None
    assert relative(graph.run(plan.module), graph.dense()) < 1e-6


def test_many_rows_stay(tmp_path: Path) -> None:
    plan = planned(graph_of(block(), 9, WIDTH), saved(profile(), tmp_path))
    assert linears(plan) == [] and codes(plan) == []


def test_no_gain_no_change(tmp_path: Path) -> None:
    plan = planned(graph_of(block(), 1, WIDTH), saved(profile(factor=1e-3), tmp_path))
    assert linears(plan) == [] and codes(plan) == ["no_faster_kernel"] * 2
    (reason, _) = (one for one in plan.plan.rejections if one.code == "no_faster_kernel")
    assert "us by our kernel" in reason.because
    launch = profile(kernel_launch_us=1e6)
    plan = planned(graph_of(block(), 1, WIDTH), saved(launch, tmp_path))
    assert linears(plan) == [] and codes(plan) == ["no_faster_kernel"] * 2


@pytest.mark.parametrize("objective", ["flops", "memory"])
def test_only_time_is_gained(tmp_path: Path, objective: str) -> None:
    graph = graph_of(block(), 1, WIDTH)
    plan = planned(graph, saved(profile(), tmp_path), objective=objective)
    assert linears(plan) == [] and set(codes(plan)) <= {"no_faster_kernel"}


def test_a_dtype_that_was_not_measured_stays(tmp_path: Path) -> None:
    graph = graph_of(block(), 1, WIDTH, dtype=torch.bfloat16)
    plan = planned(graph, saved(profile(), tmp_path))
    assert linears(plan) == [] and codes(plan) == ["no_kernel_rate"]
    both = saved(profile(dtypes=("float32", "bfloat16")), tmp_path)
    assert len(linears(planned(graph, both))) == 2


def test_a_weight_that_is_written_to_stays(tmp_path: Path) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(OUTPUTS, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            self.weight.mul_(0.5)
            return torch.nn.functional.linear(x, self.weight)

    graph = graph_of(Written().eval(), 1, WIDTH)
    assert linears(planned(graph, saved(profile(), tmp_path))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled(tmp_path: Path, dtype: torch.dtype) -> None:
    model = block().to(dtype)
    device = saved(profile(dtypes=(str(dtype).removeprefix("torch."),)), tmp_path)
    options = {"device_profile": device, "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", options=options)
    x = torch.randn(1, 3, WIDTH).to(dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        exact = block()
        exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
        near = 1e-6 if dtype == torch.float32 else 2e-2
        assert relative([run(x).float()], [exact(x.float())]) < near
        (report,) = last_reports()
        assert report.outcome == "edited" and report.packed_bytes == 0
        for parameter in model.parameters():  # read anew at every call
            parameter.mul_(0.5)
        assert relative([run(x).float()], [model(x).float()]) < near


def test_a_dynamic_number_of_rows_is_held_by_a_guard(tmp_path: Path) -> None:
    model = block()
    options = {"device_profile": saved(profile(), tmp_path), "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", dynamic=True, options=options)
    with torch.no_grad():
        for rows, outcome in ((4, "edited"), (40, None), (5, None)):
            x = torch.randn(rows, WIDTH)
            torch.testing.assert_close(run(x), model(x), rtol=1e-5, atol=1e-5)
            if outcome:
                assert last_reports()[-1].outcome == outcome
    assert len(last_reports()) == 2 and last_reports()[-1].outcome != "edited"


def test_a_plan_that_names_it_needs_no_rates(tmp_path: Path) -> None:
    graph = graph_of(block(), 1, WIDTH)
    plan = planned(graph, saved(profile(), tmp_path))
    file = tmp_path / "plan.yaml"
    file.write_text(plan_to_yaml(plan.plan))
    pinned = planned(graph, saved(profile(dtypes=()), tmp_path), config=str(file))
    assert linears(pinned) == linears(plan)
