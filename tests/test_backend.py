"""Never worse: whatever fails compiles dense, with one warning that says why."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenpass
from tests.models.zoo.common import ready
from tests.models.zoo.hand_written import Pooled
from tokenpass.errors import (
    ConfigError,
    FallbackWarning,
    OptionError,
    PlanMismatchError,
)
from tokenpass.report import last_reports
from tokenpass.rewrite.replay import Replay

ROOT = Path(__file__).parents[1]
EAGER = {"lowering": "eager", "objective": "flops"}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return ready(Pooled(layers=2), 1.5)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 24, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    torch._dynamo.reset()
    given = {"lowering": "eager"} if "config" in options else EAGER
    with torch.no_grad():
        return torch.compile(model, backend="tokenpass", options={**given, **options})(x)


def test_a_budget_edits(model: nn.Module, x: Tensor) -> None:
    got = run(model, x, budget=0.7)
    (report,) = last_reports()
    assert report.outcome == "edited"
    assert report.plan.share <= 0.7
    assert not torch.equal(got, model(x))


def fail_in(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError(message)

    monkeypatch.setattr(Replay, "run_call", fail)


def test_a_failure_compiles_dense_with_one_warning(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(monkeypatch, "no such token\nand more lines")
    with pytest.warns(FallbackWarning) as caught:
        got = run(model, x, budget=0.7)
    (warning,) = caught
    assert "RuntimeError: no such token" in str(warning.message)
    assert "on_failure" in str(warning.message)
    assert torch.equal(got, model(x))
    (report,) = last_reports()
    assert report.outcome == "fallback"
    assert "no such token" in report.cause


def test_on_failure_raise(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in(monkeypatch, "no such token")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="no such token"):
        run(model, x, budget=0.7, on_failure="raise")


def test_a_failing_policy_compiles_dense(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenpass.passes.token_reduction import token_merge

    def broken(*args: Any) -> Any:
        raise KeyError("keys")

    monkeypatch.setattr(token_merge, "merge_assignment", broken)
    with pytest.warns(FallbackWarning, match="keys"):
        got = run(model, x, budget=0.7)
    assert torch.equal(got, model(x))


class Plain(nn.Module):
    """No tokens anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


def test_a_graph_without_a_token_stream_runs_dense_and_is_listed() -> None:
    x, model = torch.randn(3, 12), Plain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run(model, x, budget=0.5)
    assert torch.equal(got, model(x))
    (report,) = last_reports()
    assert report.outcome == "dense"
    codes = {r.code for r in report.rejections}
    assert codes - {"no_faster_kernel", "no_kernel_rate"} == {"no_token_stream", "not_calibrated"}


class Mutates(nn.Module):
    """Writes into a view of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pooled(layers=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.embed(x)
        x = self.body.blocks[0](x)
        x = x * 1.0
        x.view(x.shape[0], -1).add_(1.0)
        x = self.body.blocks[1](x)
        return self.body.norm(x).mean(1)


def test_a_write_through_a_view_is_refused(x: Tensor) -> None:
    torch.manual_seed(0)
    model = ready(Mutates(), 1.5)
    got = run(model, x, budget=0.7, on_failure="raise")
    found = [r for r in last_reports()[-1].rejections if r.code == "mutated_alias"]
    assert found
    assert "add_" in Path(__file__).read_text().splitlines()[line_of(found[0].because) - 1]
    edits = last_reports()[-1].plan.edits
    assert edits and all(e.site.startswith("body.blocks.1") for e in edits)
    assert not torch.equal(got, model(x))


def line_of(text: str) -> int:
    """The line that a message names."""
    return int(text.split("test_backend.py:")[1].split()[0])


class Mapped(nn.Module):
    """A functorch region inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pooled(layers=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + torch.vmap(torch.sin)(x))


def test_a_functorch_region_runs_dense(x: Tensor) -> None:
    model = ready(Mapped(), 1.5)
    got = run(model, x, budget=0.5)
    assert torch.allclose(got, model(x))
    (report,) = last_reports()
    assert report.outcome == "dense"
    assert {r.code for r in report.rejections} <= {"functorch_region", "higher_order_operator"}


def test_reset_forgets_reports(model: nn.Module, x: Tensor) -> None:
    run(model, x)
    assert last_reports()
    tokenpass.reset()
    assert not last_reports()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 0}, "budget"),
        ({"budget": 30}, "budget"),
        ({"budget": -1}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"budget": "abc"}, "budget"),
        ({"bugdet": 0.5}, "did you mean 'budget'"),
        ({"passes": [{"token_merge": {"policy": "tmoe"}}]}, "did you mean 'tome'"),
        ({"budget": 0, "lowering": "egaer"}, "(?s)budget.*lowering"),
    ],
)
def test_bad_options(model: nn.Module, x: Tensor, options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        run(model, x, **options)


def test_a_missing_file(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        run(model, x, config=tmp_path / "nowhere.yaml")


def saved_plan(model: nn.Module, x: Tensor, folder: Path) -> tuple[Path, Tensor]:
    got = run(model, x, budget=0.7)
    path = folder / "plan.yaml"
    path.write_text(last_reports()[-1].plan_yaml, encoding="utf-8")
    return path, got


def test_a_saved_plan_runs_again(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    path, first = saved_plan(model, x, tmp_path)
    before = last_reports()[-1].plan
    again = run(model, x.clone(), config=path)
    after = last_reports()[-1].plan
    assert torch.equal(first, again)
    assert before.edits == after.edits
    assert before.fingerprint == after.fingerprint
    assert before.planned_cost == after.planned_cost


def test_a_plan_of_another_graph(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    path, _ = saved_plan(model, x, tmp_path)
    with pytest.raises(PlanMismatchError, match=r"(?s)another model, input shape"):
        run(ready(Pooled(layers=3)), x, config=path)


def test_a_site_with_a_typo_names_the_nearest(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    path, _ = saved_plan(model, x, tmp_path)
    path.write_text(path.read_text().replace("blocks.0:", "blcoks.0:"), encoding="utf-8")
    with pytest.raises(PlanMismatchError, match=r"did you mean 'blocks\.0:after_attention'"):
        run(model, x, config=path)


@pytest.mark.parametrize("level", ["0", "25", "11", "tokens+1", "tokens-30"])
def test_a_pinned_level_out_of_range(
    model: nn.Module, x: Tensor, tmp_path: Path, level: str
) -> None:
    """Merging keeps at least half of the tokens that come in (here 24)."""
    path, _ = saved_plan(model, x, tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    edit = next(line for line in lines if "token_merge" in line)
    head = edit.split("level:")[0]
    other = [line for line in lines if not line.startswith("  - ")]
    text = "".join(other).replace("edits:\n", f"edits:\n{head}level: '{level}'}}\n")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanMismatchError, match="level"):
        run(model, x, config=path)


def test_the_log_tells_the_report(
    model: nn.Module, x: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tokenpass"):
        run(model, x, budget=0.7)
    assert "token_merge/head_cosine at blocks.0:after_attention" in caplog.text


CHILD = """
import json, torch
from torch._dynamo.utils import counters
from torch._inductor import config
config.fx_graph_cache = True
torch.manual_seed(0)
from tests.models.zoo.hand_written import Pooled
model = Pooled(layers=1).eval()
x = torch.randn(2, 24, 12)
static = []
from torch._functorch._aot_autograd import frontend_utils
with torch.no_grad():
    run = torch.compile(model, backend="tokenpass",
                        options={"budget": 0.8, "objective": "flops", "on_failure": "raise"})
    out = run(x)
    error = float((run(x) - out).abs().max())
from tokenpass.report import last_reports
print(json.dumps({
    "outcome": last_reports()[0].outcome,
    "edits": len(last_reports()[0].plan.edits),
    "hits": counters["inductor"]["fxgraph_cache_hit"],
    "misses": counters["inductor"]["fxgraph_cache_miss"],
    "aot_hits": counters["aot_autograd"]["autograd_cache_hit"],
    "bypass": counters["inductor"]["fxgraph_cache_bypass"],
    "out": out.tolist(),
}))
"""


@pytest.mark.slow  # two processes that import torch, one of which compiles C++
def test_a_second_process_finds_the_compiled_graph(tmp_path: Path) -> None:
    first, second = (child(tmp_path) for _ in range(2))
    assert first["outcome"] == "edited" and first["edits"]
    assert first["misses"] and not first["bypass"]
    assert second["hits"] or second["aot_hits"]
    assert not second["misses"]
    assert first["out"] == second["out"]


def child(folder: Path) -> dict[str, Any]:
    """What one process reports."""
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "PYTHONPATH": path_with(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def path_with(root: Path) -> str:
    """The module search path of a child: the tree under test first."""
    return os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_parameters_are_static_inputs(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor is told which inputs never move, or CUDA graphs would copy every weight."""
    from tokenpass import backend

    seen: list[Any] = []

    def lower(module: torch.fx.GraphModule, inputs: Any, patches: Any) -> Any:
        seen.append(module)
        return torch.fx.Interpreter(module).run

    monkeypatch.setattr(backend, "lower_inductor", lower)
    run(model, x, budget=0.7, lowering="inductor")
    (graph,) = seen
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    static = [n for n in nodes if "_dynamo_static_input_type" in (n.meta.get("tensor_dict") or {})]
    assert len(static) == len(list(model.parameters()))
    assert hasattr(graph, "_param_name_to_source")


def test_the_pipeline_is_pure(model: nn.Module, x: Tensor) -> None:
    run(model, x, budget=0.7)
    first = last_reports()[-1].plan
    run(model, x, budget=0.7)
    assert last_reports()[-1].plan == first


def test_a_kept_share_needs_no_budget(model: nn.Module, x: Tensor) -> None:
    run(model, x, passes=[{"token_merge": {"keep_ratio": 0.75, "layers": 0}}])
    (edit,) = last_reports()[-1].plan.edits
    assert (edit.pass_name, edit.level) == ("token_merge", "18")


def test_a_pass_limited_to_no_layer_of_the_graph_is_listed(model: nn.Module, x: Tensor) -> None:
    got = run(model, x, budget=0.6, passes=[{"token_merge": {"layers": 99}}])
    assert torch.equal(got, model(x))
    assert "out_of_scope" in {r.code for r in last_reports()[-1].rejections}
