"""Lossy sparsity as users ask for it: budgets, memory, plans that are saved, what is told."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Interpreter

import tokenpass
from tests.models.harness import Graph, capture_calls, relative
from tokenpass.bundle.folder import Bundle, load_bundle, save_bundle
from tokenpass.bundle.replaying import replay
from tokenpass.edits import Edit, Rejection
from tokenpass.errors import CalibrationMismatchError, FallbackWarning, PlanMismatchError
from tokenpass.options import read_options
from tokenpass.pipeline import Planned, make_plan
from tokenpass.pipeline.choices import gathered
from tokenpass.report import last_reports, text
from tokenpass.statistics import Calibration

LAYERS, WIDTH = 3, 64


class Layer(nn.Module):
    """A gated MLP behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gate, self.up = (nn.Linear(WIDTH, 160, bias=False) for _ in range(2))
        self.down = nn.Linear(160, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    """Some layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def ready(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return Model().eval()


def calibrated(model: nn.Module) -> Calibration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenpass.calibrate(model, [{"x": torch.randn(64, WIDTH)}])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return ready()


@pytest.fixture(scope="module")
def calibration(model: nn.Module) -> Calibration:
    return calibrated(model)


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> Graph:
    (found,) = capture_calls(model, [{"x": torch.randn(1, WIDTH)}])
    return found


def options(calibration: Calibration | None, **given: Any) -> dict[str, Any]:
    found = {"objective": "flops", "pack_memory": 3.0, **given}
    return found if calibration is None else {**found, "calibration": calibration}


def fixed(share: float = 0.4, **scope: Any) -> list[dict[str, Any]]:
    return [{"activation_sparsity": {"sparsity": share, **scope}}]


def planned(graph: Graph, calibration: Calibration | None, **given: Any) -> Planned:
    return make_plan(graph.view, graph.captured, read_options(options(calibration, **given)))


def sites(plan: Planned) -> list[str]:
    return [e.site for e in plan.plan.edits if e.pass_name == "activation_sparsity"]


def codes(plan: Planned) -> set[str]:
    return {rejection.code for rejection in plan.plan.rejections}


# budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("budget", [0.9, 0.7])
def test_a_budget_is_met(
    model: nn.Module, calibration: Calibration, budget: float, rows: int
) -> None:
    (graph,) = capture_calls(model, [{"x": torch.randn(rows, WIDTH)}])
    plan = planned(graph, calibration, budget=budget)
    assert plan.plan.share <= budget and plan.plan.share > budget - 0.1
    assert not plan.plan.notes and plan.plan.error > 0
    found = graph.run(plan.module or graph.view.module)
    assert relative(found, graph.reference(plan)) < 1e-5


def test_less_error_than_one_level_for_all(graph: Graph, calibration: Calibration) -> None:
    uniform = planned(graph, calibration, passes=fixed(0.3, policy="wina"))
    plan = planned(graph, calibration, budget=uniform.plan.share)
    assert plan.plan.share <= uniform.plan.share and plan.plan.error < uniform.plan.error


def test_the_knee_and_its_note(graph: Graph, calibration: Calibration) -> None:
    plan = planned(graph, calibration, budget=0.05)
    assert plan.plan.share > 0.05 and sites(plan)
    assert [note for note in plan.plan.notes if "no levels of the regions reach" in note]


def test_an_error_is_not_passed(graph: Graph, calibration: Calibration) -> None:
    mild, strong = (planned(graph, calibration, max_error=error) for error in (0.02, 0.2))
    assert 0 < mild.plan.error <= 0.02 < strong.plan.error <= 0.2
    assert strong.plan.share < mild.plan.share < 1
    both = planned(graph, calibration, budget=0.5, max_error=0.02)
    assert both.plan.error <= 0.02
    assert [note for note in both.plan.notes if note.startswith("max_error binds")]


def test_small_products_do_not_pay_and_it_is_said(graph: Graph, calibration: Calibration) -> None:
    given = {"objective": "latency", "device_profile": "generic-cpu"}
    plan = planned(graph, calibration, budget=0.5, **given)
    assert plan.module is None and not plan.plan.edits
    assert [note for note in plan.plan.notes if "no lossy plan is predicted to pay" in note]
    asked = planned(graph, calibration, passes=fixed(), **given)
    assert len(sites(asked)) == 3 * LAYERS and asked.plan.share > 1  # a fixed level is an order


def test_it_pays_on_a_large_product() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 8192), nn.Tanh(), nn.Linear(8192, 256)).eval()
    (graph,) = capture_calls(lambda x: model(x), [{"x": torch.randn(1, 256)}])
    given = {"objective": "latency", "device_profile": "generic-cpu"}
    plan = planned(graph, None, budget=0.8, passes=["activation_sparsity"], **given)
    assert sites(plan) and plan.plan.share <= 0.8
    assert {edit.policy for edit in plan.plan.edits} == {"top_k"}


# where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "count"),
    [
        ({"include": ["layers.1.*"]}, 3),
        ({"include": ["*.down"]}, LAYERS),
        ({"include": ["*.down:projection"]}, LAYERS),
        ({"exclude": ["*.down"]}, 2 * LAYERS),
        ({"exclude": ["re:.*(gate|up)"]}, LAYERS),
        ({"include": ["layers.1.*"], "exclude": ["*.up"]}, 2),
        ({"policy": "cats", "include": ["*.down"]}, LAYERS),
    ],
)
def test_scopes(graph: Graph, calibration: Calibration, scope: dict[str, Any], count: int) -> None:
    plan = planned(graph, calibration, passes=fixed(**scope))
    assert len(sites(plan)) == count


def test_a_scope_of_nothing(graph: Graph, calibration: Calibration) -> None:
    plan = planned(graph, calibration, passes=fixed(include=["encoder.*"]))
    assert plan.module is None and codes(plan) >= {"out_of_scope"}


def test_layers_of_a_decoder() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=3, num_attention_heads=4)
    model = LlamaForCausalLM(config).eval()
    call = {"input_ids": torch.tensor([[5]]), "use_cache": False}
    (graph,) = capture_calls(model, [call])
    plan = planned(graph, None, passes=fixed(layers="1-2"))
    assert {site.split(".")[2] for site in sites(plan)} == {"1", "2"} and len(sites(plan)) == 14


@pytest.mark.parametrize("share", [0.4, "auto"])
def test_no_room_for_copies(graph: Graph, calibration: Calibration, share: Any) -> None:
    given: dict[str, Any] = {"passes": fixed(share), "pack_memory": 0}
    given |= {"budget": 0.7} if share == "auto" else {}
    plan = planned(graph, calibration, **given)
    assert plan.module is None and plan.packed_bytes == 0 and codes(plan) >= {"pack_memory"}


def test_room_for_some_copies(graph: Graph, calibration: Calibration) -> None:
    plan = planned(graph, calibration, passes=fixed(), pack_memory=0.5)
    weights = sum(p.numel() * p.element_size() for p in ready().parameters())
    assert 0 < plan.packed_bytes <= 0.5 * weights
    assert 0 < len(sites(plan)) < 3 * LAYERS and codes(plan) >= {"pack_memory"}
    refused = [r.where for r in plan.plan.rejections if r.code == "pack_memory"]
    assert sorted([*refused, *sites(plan)]) == sorted({*refused, *sites(plan)})


# what is known ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["wina", "teal", "cats", "chess"])
def test_without_a_calibration(graph: Graph, policy: str) -> None:
    plan = planned(graph, None, passes=fixed(policy=policy))
    assert plan.module is None and codes(plan) >= {"not_calibrated"}


def test_defaults(graph: Graph, calibration: Calibration) -> None:
    for known, policy in ((calibration, "wina"), (None, "top_k")):
        plan = planned(graph, known, passes=fixed())
        assert {edit.policy for edit in plan.plan.edits} == {policy}


@pytest.mark.parametrize("on_failure", ["fallback", "raise"])
def test_the_calibration_of_another_model(calibration: Calibration, on_failure: str) -> None:
    given = options(calibration, passes=fixed(), lowering="eager", on_failure=on_failure)
    run = torch.compile(ready(seed=9), backend="tokenpass", options=given)
    with torch.no_grad(), pytest.raises(CalibrationMismatchError, match=r"layers\.0\.gate"):
        run(torch.randn(1, WIDTH))


# plans that are saved --------------------------------------------------------------------------


def same(first: Planned, second: Planned) -> bool:
    """Whether two graphs are alike, to the values that they hold."""
    assert first.module is not None and second.module is not None
    (one, other) = (
        [(n.op, str(n.target), str(n.args)) for n in plan.module.graph.nodes]
        for plan in (first, second)
    )
    names = [target for op, target, _ in one if op == "get_attr"]
    return one == other and all(
        torch.equal(getattr(first.module, name), getattr(second.module, name)) for name in names
    )


@pytest.mark.parametrize("policy", ["wina", "chess", "griffin", "core_matching", "random", "top_k"])
def test_a_saved_plan_gives_the_same_graph(
    model: nn.Module, calibration: Calibration, graph: Graph, policy: str, tmp_path: Path
) -> None:
    given = options(calibration, passes=fixed(1 / 3, policy=policy), seed=7)
    with torch.no_grad():
        told = tokenpass.explain(model, torch.randn(1, WIDTH), options=given)
    told.save_plan(tmp_path / "plan.yaml")
    plan = planned(graph, calibration, passes=fixed(1 / 3, policy=policy), seed=7)
    given = {"calibration": calibration, "config": str(tmp_path / "plan.yaml")}
    again = make_plan(graph.view, graph.captured, read_options(given))
    assert sites(again) == sites(plan) != []
    assert same(plan, again)
    assert relative(graph.run(again.module), graph.reference(again)) < 1e-5


def test_fuel(model: nn.Module, calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPASS_FUEL", "2")
    given = options(calibration, passes=fixed())
    with torch.no_grad():
        (report,) = tokenpass.explain(model, torch.randn(1, WIDTH), options=given).graphs
    assert len(report.plan.edits) == 2 and len(report.plan.dropped) == 3 * LAYERS - 2


SITE = "layers.0.down:projection"


@pytest.mark.parametrize("level", ["0", "1", "1.5", "tokens"])
def test_a_pinned_level_that_is_no_share(
    graph: Graph, calibration: Calibration, level: str
) -> None:
    edit = Edit("activation_sparsity", SITE, "teal", level)
    with pytest.raises(PlanMismatchError, match="above 0 and below 1"):
        graph.planned([edit], calibration=calibration)


def test_a_pinned_plan_without_its_calibration(graph: Graph) -> None:
    with pytest.raises(PlanMismatchError, match="not_calibrated"):
        graph.planned([Edit("activation_sparsity", SITE, "teal", "0.4")])


def test_a_pinned_plan_under_gradients(model: nn.Module, calibration: Calibration) -> None:
    (report,) = tokenpass.explain(model, torch.randn(1, WIDTH)).graphs
    mark = report.plan.fingerprint
    edits = [{"pass": "activation_sparsity", "site": SITE, "policy": "teal", "level": "0.4"}]
    file = {"version": 1, "edits": edits, "fingerprint": mark}
    given = {"calibration": calibration, "config": file, "lowering": "eager"}
    run = torch.compile(model, backend="tokenpass", options=given)
    with pytest.raises(PlanMismatchError, match="needs_gradients"):
        run(torch.randn(1, WIDTH))


def test_a_pinned_value_that_two_edits_compute(graph: Graph, calibration: Calibration) -> None:
    edits = [
        Edit("activation_sparsity", "layers.0.up:projection", "teal", "0.4"),
        Edit("activation_sparsity", SITE, "cats", "0.4"),
    ]
    with pytest.raises(PlanMismatchError, match="computed by two edits"):
        graph.planned(edits, calibration=calibration)


@pytest.mark.parametrize("policy", ["wina", "cats", "top_k"])
def test_a_bundle(graph: Graph, calibration: Calibration, policy: str, tmp_path: Path) -> None:
    """Its graph is the edited one, whose thresholds are constants of its own."""
    plan = planned(graph, calibration, passes=fixed(policy=policy))
    assert plan.module is not None
    edited = graph.captured.__class__(
        **{**vars(graph.captured), "module": plan.module, "data_inputs": ()}
    )
    save_bundle(Bundle(edited, graph.inputs, "", {}), tmp_path)
    back = load_bundle(tmp_path)
    with torch.no_grad():
        found = Interpreter(back.captured.module).run(*back.inputs)
    assert relative(found, graph.run(plan.module)) == 0


def test_a_bundle_runs_its_plan_again(graph: Graph, tmp_path: Path) -> None:
    given = options(None, passes=fixed(policy="top_k"))
    plan = planned(graph, None, passes=fixed(policy="top_k"))
    save_bundle(Bundle(graph.captured, graph.inputs, "", given), tmp_path)
    outcome = replay(load_bundle(tmp_path))
    assert outcome.edits == len(plan.plan.edits) > 0 and outcome.agrees


# compiled --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_compiled_and_never_stale(calibration: Calibration, lowering: str) -> None:
    model = ready()
    x = torch.randn(1, WIDTH)
    given = options(calibration, passes=fixed(policy="teal"), lowering=lowering)
    given |= {"verify": "always", "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", options=given)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        first = run(x)
        (report,) = last_reports()
        assert report.outcome == "edited" and not report.exact
        for parameter in model.parameters():  # compared with the reference by verify
            parameter.mul_(1.5)
        assert relative([run(x)], [first]) > 1e-2
        for parameter in model.parameters():
            parameter.data.mul_(0.5)
        run(x)


def test_graphs_that_differ_in_thresholds_alone_share_no_code(calibration: Calibration) -> None:
    """Inductor's caches know what constants hold."""
    model, x = ready(), torch.randn(1, WIDTH)
    found = []
    for share in (0.2, 0.6):
        torch._dynamo.reset()
        given = options(calibration, passes=fixed(share, policy="teal"))
        given |= {"verify": "first", "on_failure": "raise"}
        run = torch.compile(model, backend="tokenpass", options=given)
        with torch.no_grad():
            found.append(run(x))
    assert relative([found[0]], [found[1]]) > 1e-2


def test_more_rows_than_gain_compile_dense(calibration: Calibration) -> None:
    model = ready()
    given = options(calibration, passes=fixed(policy="teal"), lowering="eager", verify="always")
    run = torch.compile(model, backend="tokenpass", dynamic=True, options=given)
    with torch.no_grad():
        for rows in (2, 3, 40, 2):
            assert math.isfinite(float(run(torch.randn(rows, WIDTH)).sum()))
    few, many = last_reports()
    assert few.plan.edits and not many.plan.edits
    assert {r.code for r in many.rejections} >= {"too_many_rows"}


def test_gradients_keep_it_dense(model: nn.Module, calibration: Calibration) -> None:
    given = options(calibration, passes=fixed(), lowering="eager")
    run = torch.compile(model, backend="tokenpass", options=given)
    run(torch.randn(1, WIDTH)).sum().backward()
    model.zero_grad()
    assert last_reports()[-1].outcome == "dense"
    assert {r.code for r in last_reports()[-1].rejections} >= {"needs_gradients"}


# what is told ----------------------------------------------------------------------------------


def test_report_and_kernels(model: nn.Module, calibration: Calibration) -> None:
    given = options(calibration, passes=fixed(0.4, policy="cats"))
    with torch.no_grad():
        told = tokenpass.explain(model, torch.randn(1, WIDTH), options=given)
    shown = text(told.graphs[0])
    assert f"activation_sparsity/cats at {SITE} leaves out 40.0%" in shown
    assert "second copies of weights" in shown and "estimated error" in shown
    assert {use.operator for use in told.kernels[0]} == {"glu_neuron"}


def test_a_policy_that_finds_nothing_says_so() -> None:
    class Plain(nn.Module):
        """A linear layer, and no MLP."""

        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(WIDTH, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.only(x)

    (graph,) = capture_calls(Plain().eval(), [{"x": torch.randn(1, WIDTH)}])
    plan = planned(graph, None, budget=0.5, objective="flops", passes=fixed(policy="cats"))
    assert not sites(plan) and "no_projection" in codes(plan)


def test_one_reason_for_many_places_is_told_once() -> None:
    reasons = [Rejection("too_many_rows", f"layer.{at}", "5 rows") for at in range(4)]
    other = Rejection("too_many_rows", "head", "9 rows")
    first, last = gathered([*reasons, other])
    assert first.where == "layer.0 and 3 more" and first.because == "5 rows"
    assert last == other


def test_without_a_calibration_it_must_be_named(model: nn.Module) -> None:
    (graph,) = capture_calls(lambda x: model(x), [{"x": torch.randn(1, WIDTH)}])
    plan = planned(graph, None, budget=0.5, objective="flops")
    assert not sites(plan) and "not_calibrated" in codes(plan)
    named = planned(graph, None, budget=0.5, objective="flops", passes=["activation_sparsity"])
    assert sites(named) and "not_calibrated" not in codes(named)
