"""Whatever stage fails, and however: the call runs dense, and one warning names the cause.

Faults are put into one stage after the other, through the backend itself on a graph that Dynamo
made once (fast, so every stage meets every error), and through `torch.compile` with one error.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.models.zoo.common import ready
from tests.models.zoo.hand_written import Block
from tokenpass import backend
from tokenpass.backend import tokenpass
from tokenpass.capture import dynamo
from tokenpass.cost.roofline import GraphCost
from tokenpass.errors import FallbackWarning, InternalError
from tokenpass.graph import view
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.labels import Labels
from tokenpass.passes.dead_tokens import DeadTokens
from tokenpass.passes.token_reduction import token_merge, token_prune
from tokenpass.passes.token_reduction.token_merge import TokenMerge
from tokenpass.passes.token_reduction.token_prune import TokenPrune
from tokenpass.pipeline import checked, planned, planning, reporting
from tokenpass.plan.pricing import Prices
from tokenpass.report import last_reports
from tokenpass.rewrite import rewriter
from tokenpass.rewrite.replay import Replay
from tokenpass.rewrite.restoring import Restoring

MERGE = {"lowering": "eager", "objective": "flops", "budget": 0.8}
PRUNE = {
    "lowering": "eager",
    "objective": "flops",
    "budget": 0.8,
    "passes": [{"token_prune": {"policy": "key_norm"}}],
}


class Tagger(nn.Module):
    """Hands out every token, so that those that left must be restored."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Stage:
    """Where a fault is put: an attribute of a module or class, and options that lead there."""

    name: str
    owner: Any
    attribute: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return self.name


LINEAR_RULE = type(find_rule(torch.ops.aten.linear.default))

STAGES = (
    Stage("capture", backend, "capture", MERGE),
    Stage("capture, tracing", dynamo, "retrace", MERGE),
    Stage("capture, carrying over", dynamo, "carry_over", MERGE),
    Stage("analysis", backend, "analyse", MERGE),
    Stage("analysis, labels", Labels, "infer", MERGE),
    Stage("analysis, one rule", LINEAR_RULE, "infer", MERGE),
    Stage("analysis, regions", view, "attention_regions", MERGE),
    Stage("analysis, sites", view, "find_sites", MERGE),
    Stage("demand", view, "demand_of", MERGE),
    Stage("training", backend, "training_refusal", MERGE),
    Stage("profile", planning, "find_profile", MERGE),
    Stage("fingerprint", planning, "fingerprint", MERGE),
    Stage("dense cost", planning, "graph_cost", MERGE),
    Stage("cost of sizes", GraphCost, "evaluate", MERGE),
    Stage("merge, candidates", TokenMerge, "candidates", MERGE),
    Stage("prune, candidates", TokenPrune, "candidates", PRUNE),
    Stage("dead tokens", DeadTokens, "read_cuts", MERGE),
    Stage("pricing", planning, "price", MERGE),
    Stage("one price", Prices, "__call__", MERGE),
    Stage("choose", planning, "choose", MERGE),
    Stage("merge, action", TokenMerge, "action", MERGE),
    Stage("merge, reduction", token_merge, "merge_assignment", MERGE),
    Stage("prune, action", TokenPrune, "action", PRUNE),
    Stage("prune, reduction", token_prune, "prune_tokens", PRUNE),
    Stage("rewrite", planned, "rewrite", MERGE),
    Stage("rewrite, replay", Replay, "run_call", MERGE),
    Stage("rewrite, restoring", Restoring, "restore", MERGE),
    Stage("rewrite, marking", rewriter, "mark_owners", MERGE),
    Stage("rewrite, verification", rewriter, "verify_rewrite", MERGE),
    Stage("edited cost", planned, "graph_cost", MERGE),
    Stage("report", backend, "report_of", MERGE),
    Stage("report, plan file", reporting, "plan_to_yaml", MERGE),
    Stage("goal", backend, "goal", MERGE),
    Stage("promise", checked, "promise", MERGE | {"verify": "first"}),
    Stage("verified", checked, "verified", MERGE | {"verify": "first"}),
    Stage("kernels", backend, "installed_kernels", MERGE),
)

# Made anew for each test: torch writes into the exceptions that pass through its interpreter.
ERRORS: dict[str, Callable[[], Exception]] = {
    "runtime": lambda: RuntimeError("no such token\nand {more} lines\n"),
    "key": lambda: KeyError("no such token"),
    "recursion": lambda: RecursionError("no such token: maximum recursion depth exceeded"),
    "assertion": AssertionError,
}
NAMES = tuple(ERRORS)

# Each stage meets one of the errors, and all of them where there is time.
FAULTS = [
    pytest.param(
        stage,
        name,
        id=f"{stage.name}-{name}",
        marks=() if at % len(NAMES) == other else pytest.mark.slow,
    )
    for at, stage in enumerate(STAGES)
    for other, name in enumerate(NAMES)
]


def one_in(every: int) -> list[Any]:
    """All stages; but for one of so many they are left for where there is time."""
    slow = pytest.mark.slow
    return [pytest.param(s, marks=slow if at % every else ()) for at, s in enumerate(STAGES)]


@pytest.fixture(scope="module")
def models() -> dict[int, nn.Module]:
    torch.manual_seed(3)
    return {layers: ready(Tagger(layers), 1.5) for layers in (1, 2)}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True, eq=False)
class Graph:
    """What Dynamo hands to a backend for a model, and the dense result."""

    module: GraphModule
    inputs: Sequence[Any]
    dense: Tensor

    def compiled(self, options: dict[str, Any]) -> Tensor:
        """The backend's result on the graph's own inputs."""
        (found,) = tokenpass(self.module, self.inputs, options=options)(*self.inputs)
        return found


@pytest.fixture(scope="module")
def graphs(models: dict[int, nn.Module], x: Tensor) -> dict[int, Graph]:
    return {layers: graph_of(model, x) for layers, model in models.items()}


def graph_of(model: nn.Module, x: Tensor) -> Graph:
    """Dynamo's graph of a call."""
    seen: list[Any] = []

    def keep(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        seen.append((module, inputs))
        return module.forward

    with torch.no_grad():
        torch.compile(model, backend=keep)(x)
        ((module, inputs),) = seen
        return Graph(module, inputs, model(x))


@pytest.fixture(scope="module")
def graph(graphs: dict[int, Graph]) -> Graph:
    return graphs[1]


def layers_for(stage: Stage) -> int:
    """Behind the last layer nothing is pruned."""
    return 2 if stage.options is PRUNE else 1


def inject(monkeypatch: pytest.MonkeyPatch, stage: Stage, error: Exception) -> list[bool]:
    """Let the stage raise; the list tells whether it came so far."""
    raised: list[bool] = []

    def fail(*_args: Any, **_more: Any) -> Any:
        raised.append(True)
        raise error

    monkeypatch.setattr(stage.owner, stage.attribute, fail)
    return raised


def check_told(caught: list[warnings.WarningMessage], error: Exception) -> None:
    """One warning and one report, both of which name the cause on one line."""
    assert [w.category for w in caught] == [FallbackWarning]
    message = str(caught[0].message)
    # torch's interpreter makes a RuntimeError of every KeyError that passes through it
    names = {type(error).__name__, "RuntimeError" if isinstance(error, KeyError) else ""} - {""}
    assert any(name in message for name in names) and "\n" not in message
    assert "no such token" in message or isinstance(error, AssertionError)
    (report,) = last_reports()
    assert report.outcome == "fallback"
    assert any(name in report.cause for name in names)


@pytest.mark.parametrize(("layers", "options"), [(1, MERGE), (2, PRUNE)], ids=["merge", "prune"])
def test_without_a_fault_the_graph_is_edited(
    graphs: dict[int, Graph], layers: int, options: dict[str, Any]
) -> None:
    graph = graphs[layers]
    with torch.no_grad():
        found = graph.compiled(options | {"on_failure": "raise"})
    assert last_reports()[-1].outcome == "edited"
    assert not torch.equal(found, graph.dense)


@pytest.mark.parametrize(("stage", "name"), FAULTS)
def test_every_stage_falls_back(
    graphs: dict[int, Graph], stage: Stage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, error = graphs[layers_for(stage)], ERRORS[name]()
    raised = inject(monkeypatch, stage, error)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = graph.compiled(stage.options)
    assert raised
    assert torch.equal(found, graph.dense)
    check_told(caught, error)


@pytest.mark.parametrize("stage", one_in(4), ids=str)
def test_every_stage_raises_if_asked_to(
    graphs: dict[int, Graph], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, stage, ERRORS["runtime"]())
    with torch.no_grad(), pytest.raises(RuntimeError, match="no such token"):
        graphs[layers_for(stage)].compiled(stage.options | {"on_failure": "raise"})
    assert not last_reports()


@pytest.mark.parametrize("stage", one_in(6), ids=str)
def test_every_stage_falls_back_below_dynamo(
    models: dict[int, nn.Module], x: Tensor, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, error = models[layers_for(stage)], ERRORS["runtime"]()
    raised = inject(monkeypatch, stage, error)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = torch.compile(model, backend="tokenpass", options=stage.options)
        found, again = compiled(x), compiled(x)
    assert raised
    assert torch.equal(found, model(x)) and torch.equal(again, found)
    check_told(caught, error)


@pytest.mark.parametrize(
    ("name", "lowering"),
    [("runtime", "eager"), ("key", "inductor"), ("recursion", "inductor"), ("assertion", "eager")],
)
@pytest.mark.parametrize("on_failure", ["fallback", "raise"])
def test_an_edited_graph_that_cannot_be_lowered(
    graph: Graph, name: str, lowering: str, on_failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, lower_eager, refused = ERRORS[name](), backend.lower_eager, []

    def lower(module: GraphModule, inputs: Sequence[Any], *_: Any) -> Callable[..., Any]:
        if module is not graph.module:
            refused.append(module)
            raise error
        return lower_eager(module, inputs)

    monkeypatch.setattr(backend, f"lower_{lowering}", lower)
    options = MERGE | {"lowering": lowering, "on_failure": on_failure}
    if on_failure == "raise":
        with torch.no_grad(), pytest.raises(type(error)):
            graph.compiled(options)
        assert not last_reports()
        return
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = graph.compiled(options)
    assert refused
    assert torch.equal(found, graph.dense)
    check_told(caught, error)


@pytest.mark.parametrize("show", ["text", "details"])
@pytest.mark.parametrize("fault", ["", "capture"])
def test_a_report_that_cannot_be_shown_costs_nothing(
    graph: Graph,
    show: str,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ERRORS["runtime"]()
    inject(monkeypatch, Stage("", backend, show, {}), ERRORS["key"]())
    if fault:
        inject(monkeypatch, Stage("", backend, fault, {}), error)
    with (
        torch.no_grad(),
        caplog.at_level(logging.DEBUG, logger="tokenpass"),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        found = graph.compiled(MERGE)
    assert "cannot be shown" in caplog.text
    if fault:
        assert torch.equal(found, graph.dense)
        check_told(caught, error)
    else:
        assert not caught
        assert last_reports()[-1].outcome == "edited"


def replay_that_gives(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """A replay whose first output is another one."""
    right = Replay.run

    def run(self: Replay, *inputs: Any) -> Any:
        first, *others = right(self, *inputs)
        return (change(first), *others)

    return run


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda out: out[:, 1:], r"output 0 .*\[2, 23, 3\].* instead of .*\[2, 24, 3\]"),
        (lambda out: out.float(), "output 0 .* is torch.float32"),
        (lambda out: (out, out), "2 outputs instead of 1"),
    ],
    ids=["shorter", "dtype", "more"],
)
def test_the_rewritten_graph_is_verified(
    graph: Graph, change: Callable[[Tensor], Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replay, "run", replay_that_gives(change))
    with torch.no_grad():
        with pytest.raises(InternalError, match=told):
            graph.compiled(MERGE | {"on_failure": "raise"})
        with pytest.warns(FallbackWarning, match=told):
            found = graph.compiled(MERGE)
    assert torch.equal(found, graph.dense)


def test_wrong_values_are_seen_by_verification_on_request(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replay, "run", replay_that_gives(lambda out: out / 0.0))
    with torch.no_grad():
        with pytest.warns(FallbackWarning, match="not finite"):
            found = graph.compiled(MERGE | {"verify": "first"})
        with pytest.raises(InternalError, match="not finite"):
            graph.compiled(MERGE | {"verify": "first", "on_failure": "raise"})
    assert torch.equal(found, graph.dense)
