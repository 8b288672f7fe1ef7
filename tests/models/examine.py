"""What tokenpass makes of one family: the row of `docs/coverage.md`, and what its test asserts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.models.harness import Graph, capture_calls, made, relative, varying_constants
from tokenpass.capture.dynamo import CaptureRefused
from tokenpass.options import read_options
from tokenpass.passes import PASSES
from tokenpass.passes.base import ExactPass
from tokenpass.pipeline import Planned, make_plan

HALF = {"budget": 0.5, "objective": "flops"}


@dataclass(frozen=True)
class Row:
    """One family. Errors are relative L2 distances, the largest of any output.

    `exact_error`: budget 1.0 beside dense; `reference_error`: budget 0.5 beside its plan's
    reference; `share`: its predicted flops, of the graph with most of them; `refused`: why the
    family as a whole was left dense, if it was.
    """

    family: str
    graphs: int
    whole: bool
    attention: int
    mlps: int
    sites: int
    edits: tuple[str, ...]
    exact_edits: tuple[str, ...]
    share: float
    exact_error: float
    reference_error: float | None
    rejections: tuple[str, ...]

    @property
    def edited(self) -> bool:
        """Whether a lossy edit was made at budget 0.5."""
        return bool(self.edits)


def examine(name: str, make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> Row:
    """Capture a family's call and plan every graph of it at budgets 1.0 and 0.5."""
    model, call = made(make)
    try:
        graphs, whole = captured(model, call)
    except torch._dynamo.exc.BackendCompilerFailed as failed:
        refused = failed.inner_exception
        if not isinstance(refused, CaptureRefused):
            raise
        return Row(name, 1, True, 0, 0, 0, (), (), 1.0, 0.0, None, (refused.rejection.code,))
    for graph in graphs:
        assert not varying_constants(graph)
    exact = [planned(graph, budget=1.0) for graph in graphs]
    half = [planned(graph, **HALF) for graph in graphs]
    errors = [reference_error(g, p) for g, p in zip(graphs, half, strict=True) if lossy(p)]
    largest = max(half, key=lambda p: p.plan.dense_cost, default=None)
    return Row(
        name,
        len(graphs),
        whole,
        sum(len(graph.view.regions) for graph in graphs),
        sum(len(graph.view.mlps) for graph in graphs),
        sum(len(graph.view.sites) for graph in graphs),
        names_of(half, exact=False),
        names_of(exact, exact=True),
        1.0 if largest is None else largest.plan.share,
        max((exact_error(g, p) for g, p in zip(graphs, exact, strict=True)), default=0.0),
        max(errors, default=None),
        codes_of(half),
    )


def captured(model: nn.Module, call: dict[str, Any]) -> tuple[list[Graph], bool]:
    """The graphs of one call, and whether Dynamo could make it one."""
    try:
        return capture_calls(model, [call], fullgraph=True), True
    except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError):
        return capture_calls(model, [call], fullgraph=False), False


def planned(graph: Graph, **options: Any) -> Planned:
    """The graph's plan under some options."""
    return make_plan(graph.view, graph.captured, read_options(options))


def lossy(plan: Planned) -> bool:
    """Whether a plan has edits that lose something."""
    return plan.module is not None and not plan.exact


def exact_error(graph: Graph, plan: Planned) -> float:
    """Distance of an exact plan to dense."""
    if plan.module is None:
        return 0.0
    assert plan.exact
    return relative(graph.run(plan.module), graph.dense())


def reference_error(graph: Graph, plan: Planned) -> float:
    """Distance of a plan's graph to the plan's reference."""
    assert plan.module is not None
    expected = graph.reference(plan)
    return relative(graph.run(plan.module), expected)


def names_of(plans: Sequence[Planned], exact: bool) -> tuple[str, ...]:
    """`pass/policy` of all edits of exact or of lossy passes, with how many there are."""
    kinds = {item.name for item in PASSES if isinstance(item, ExactPass) == exact}
    edits = [edit for plan in plans for edit in plan.plan.edits if edit.pass_name in kinds]
    counted = Counter(e.pass_name if exact else f"{e.pass_name}/{e.policy}" for e in edits)
    return tuple(f"{count} {name}" for name, count in sorted(counted.items()))


def codes_of(plans: Sequence[Planned]) -> tuple[str, ...]:
    """Codes of rejections, each once, and whether the planner found that nothing pays."""
    codes = {rejection.code for p in plans for rejection in p.plan.rejections}
    declined = any(note.startswith("no lossy plan") for p in plans for note in p.plan.notes)
    return tuple(sorted(codes | ({"declined"} if declined else set())))
