"""What is so of a case without any clock: its graphs, plans, kernels, reasons and recompilations.

The same on every machine: planned with one named profile, for that profile's instruction set.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from tokenpass.backend import Made, plan_graph, summarised
from tokenpass.codegen.cpp.isa import assumed
from tokenpass.config import Config
from tokenpass.cost.device import DeviceProfile, find_profile
from tokenpass.cost.roofline import Objective
from tokenpass.dynamo_state import as_uncompiled, forgotten
from tokenpass.edits import Edit, Plan
from tokenpass.errors import UserError
from tokenpass.pipeline import Planned
from tokenpass.pipeline.kernels import kernels_of
from tokenpass.report import GraphReport

DIGITS = 4
"""Of shares and ratios: what rounding in another order changes is no difference."""

GFLOP_DIGITS = 6
"""Of a model's size, which may be anything: significant ones."""

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


class GraphFacts(BaseModel):
    """What is so of one graph.

    `plan`: a hash of its edits; `edits`: how many of each pass and policy; `tokens`: coming in and
    going out of each layer. Ratios are of the edited graph over dense: arithmetic, bytes moved,
    peak memory. `kernels`: the generated ones, by operator and source; `references`: calls of our
    operators without one. `dense_gflop` says whether it is the same model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: str
    plan: str
    edits: dict[str, int]
    tokens: list[str]
    share: float
    flop_ratio: float
    byte_ratio: float
    memory_ratio: float
    dense_gflop: float
    rejections: dict[str, int]
    kernels: dict[str, int]
    references: int
    packed_bytes: int
    cause: str = ""


class CaseFacts(BaseModel):
    """What is so of a case: its first call's graphs, and what more calls compile anew.

    `graph_breaks`: how often the first call left a graph; `compilations`: graphs of all calls
    together; `recompilations`: graphs that the further calls made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    graphs: list[GraphFacts]
    graph_breaks: int
    compilations: int
    recompilations: int

    @property
    def fallbacks(self) -> int:
        """Graphs on which tokenpass failed."""
        return sum(graph.outcome == "fallback" for graph in self.graphs)


@dataclass
class Watcher:
    """A backend that plans each graph, keeps what is so of it, and runs it as it was."""

    config: Config
    found: list[GraphFacts]
    errors: list[Exception]

    def __call__(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        try:
            self.found.append(graph_facts(plan_graph(module, example_inputs, self.config)))
        except UserError as error:  # it would leave Dynamo wrapped in one of its own
            self.errors.append(error)
        except Exception as error:  # whatever the backend would fall back from
            report = GraphReport("fallback", Plan("", budget=1.0), cause=summarised(error))
            self.found.append(graph_facts(Made(report)))
        return module.forward


def case_facts(
    model: Callable[..., Any], first: Call, more: Sequence[Call], config: Config
) -> CaseFacts:
    """Plans a model's calls, the first and then the others, and compiles nothing.

    The model runs once eagerly for each call. Raises what the model raises, `UserError` for a plan
    or calibration that does not fit it.
    """
    watcher = Watcher(config, [], [])
    profile = find_profile("cpu", config.device_profile, measured=False)
    with forgotten(watcher), as_uncompiled(model) as plain, assumed(profile.instruction_set):
        torch._dynamo.reset()
        compiled = torch.compile(plain, backend=watcher)
        before = breaks()
        with torch.no_grad():
            compiled(*first[0], **first[1])
            graphs, broken = list(watcher.found), breaks() - before
            for args, kwargs in more:
                compiled(*args, **kwargs)
    if watcher.errors:
        raise watcher.errors[0]
    anew = len(watcher.found) - len(graphs)
    return CaseFacts(
        graphs=graphs,
        graph_breaks=broken,
        compilations=len(watcher.found),
        recompilations=anew,
    )


def breaks() -> int:
    """Graph breaks that Dynamo has counted."""
    return sum(counters["graph_break"].values())


def graph_facts(made: Made) -> GraphFacts:
    """What is so of one planned graph."""
    report, planned = made.report, made.planned
    uses = () if planned is None else kernels_of(planned)
    served = Counter(use.name for use in uses for _ in use.nodes if use.source)
    edits = Counter(f"{e.pass_name}/{e.policy}" for e in report.plan.edits)
    reasons = Counter(one.code for one in report.rejections)
    ratios = (1.0, 1.0, 1.0, 0.0) if planned is None else ratios_of(planned)
    return GraphFacts(
        outcome=report.outcome,
        plan=plan_hash(report.plan.edits),
        edits=dict(sorted(edits.items())),
        tokens=[f"{row.tokens_in} -> {row.tokens_out}" for row in report.layers],
        share=round(report.plan.share, DIGITS),
        flop_ratio=ratios[0],
        byte_ratio=ratios[1],
        memory_ratio=ratios[2],
        dense_gflop=ratios[3],
        rejections=dict(sorted(reasons.items())),
        kernels=dict(sorted(served.items())),
        references=sum(len(use.nodes) for use in uses if not use.source),
        packed_bytes=report.packed_bytes,
        cause=report.cause,
    )


def plan_hash(edits: Sequence[Edit]) -> str:
    """Sixteen hex digits of a plan's edits; their order is that of the graph."""
    lines = [f"{e.pass_name} {e.policy} {e.site} {e.level} {e.span}" for e in edits]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def ratios_of(planned: Planned) -> tuple[float, float, float, float]:
    """Arithmetic, bytes and peak memory over dense's, and dense's GFLOP."""
    dense, edited = planned.dense, planned.edited or planned.dense
    moved = [
        sum(group.moved_bytes for group in cost.per_group(planned.sizes, planned.profile))
        for cost in (dense, edited)
    ]
    objectives: tuple[Objective, ...] = ("flops", "memory")
    flops, memory = (
        [cost.evaluate(planned.sizes, planned.profile, of) for cost in (dense, edited)]
        for of in objectives
    )
    found = [
        round(after / before, DIGITS) if before else 1.0 for before, after in (flops, moved, memory)
    ]
    return found[0], found[1], found[2], float(f"{flops[0] / 1e9:.{GFLOP_DIGITS}g}")


def profile_hash(profile: DeviceProfile) -> str:
    """Sixteen hex digits of a profile's numbers."""
    return hashlib.sha256(profile.model_dump_json().encode()).hexdigest()[:16]
