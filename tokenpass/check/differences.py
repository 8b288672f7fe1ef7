"""What differs from a baseline, from what to what, and why that is likely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenpass.check.baseline import CaseBaseline, Fingerprint
from tokenpass.check.facts import CaseFacts, GraphFacts

MEANING = {
    "graphs": "graphs in the call",
    "graph_breaks": "graph breaks",
    "compilations": "graphs compiled for all shapes",
    "recompilations": "graphs compiled anew for other shapes",
    "outcome": "outcome",
    "plan": "plan",
    "edits": "edits",
    "tokens": "tokens",
    "share": "predicted share",
    "flop_ratio": "arithmetic over dense",
    "byte_ratio": "bytes moved over dense",
    "memory_ratio": "peak memory over dense",
    "dense_gflop": "GFLOP of the dense graph",
    "rejections": "places left alone",
    "kernels": "generated kernels",
    "references": "operators without a kernel",
    "packed_bytes": "bytes of second copies of weights",
    "cause": "cause of the fallback",
}
BETTER_IF_LESS = frozenset(
    {"share", "graph_breaks", "recompilations", "compilations", "references", "packed_bytes"}
)
"""Facts of which less is an improvement."""


@dataclass(frozen=True)
class Difference:
    """One fact that is not what it was; `why`: the likeliest reason. `better`: nobody minds it."""

    fact: str
    before: Any
    after: Any
    why: str
    better: bool = False

    def __str__(self) -> str:
        return f"{self.fact}: {self.before} -> {self.after}"


def differences(
    before: CaseBaseline,
    after: CaseFacts,
    options: Mapping[str, Any],
    now: Fingerprint,
    same_profile: bool,
) -> tuple[Difference, ...]:
    """All facts that differ."""
    why = likely(before, after, options, now, same_profile)
    return tuple(
        Difference(fact, old, new, why, better(fact, old, new))
        for fact, old, new in changes(before.facts, after)
    )


def changes(before: CaseFacts, after: CaseFacts) -> Iterator[tuple[str, Any, Any]]:
    """(fact, before, after) of everything that is not equal."""
    if len(before.graphs) != len(after.graphs):
        yield MEANING["graphs"], len(before.graphs), len(after.graphs)
    for name in ("graph_breaks", "compilations", "recompilations"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield MEANING[name], old, new
    several = max(len(before.graphs), len(after.graphs)) > 1
    for at, (old, new) in enumerate(zip(before.graphs, after.graphs, strict=False)):
        for fact, was, now in graph_changes(old, new):
            yield (f"graph {at}, {fact}" if several else fact), was, now


def graph_changes(before: GraphFacts, after: GraphFacts) -> Iterator[tuple[str, Any, Any]]:
    """The same of one graph; counts by name are told one by one."""
    for name in GraphFacts.model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        if isinstance(old, dict):
            for key in sorted({*old, *new}):
                if old.get(key, 0) != new.get(key, 0):
                    yield f"{MEANING[name]}, {key}", old.get(key, 0), new.get(key, 0)
        elif isinstance(old, list):
            yield from layer_changes(old, new)
        else:
            yield MEANING[name], old or "none", new or "none"


def layer_changes(before: list[str], after: list[str]) -> Iterator[tuple[str, Any, Any]]:
    """Tokens of each layer."""
    if len(before) != len(after):
        yield "layers", len(before), len(after)
    for layer, (old, new) in enumerate(zip(before, after, strict=False)):
        if old != new:
            yield f"tokens of layer {layer}", old, new


def better(fact: str, before: Any, after: Any) -> bool:
    """Whether a change of one fact is an improvement beyond doubt."""
    names = {MEANING[name] for name in BETTER_IF_LESS}
    known = any(fact == name or fact.endswith(f", {name}") for name in names)
    number = isinstance(before, int | float) and isinstance(after, int | float)
    return known and number and after < before


def likely(
    before: CaseBaseline,
    after: CaseFacts,
    options: Mapping[str, Any],
    now: Fingerprint,
    same_profile: bool,
) -> str:
    """The first of what facts depend on that is not what the baseline was made with."""
    if before.options != dict(options):
        return "the case's options changed"
    if not same_profile:
        return "the device profile changed"
    for name in ("tokenpass", "torch", "transformers"):
        old, new = getattr(before.fingerprint, name), getattr(now, name)
        if old != new:
            return f"{name} {old} -> {new}"
    work = [[graph.dense_gflop for graph in facts.graphs] for facts in (before.facts, after)]
    if work[0] != work[1]:
        return "the model or its inputs changed"
    return "the model's code, or tokenpass itself, changed"
