"""What must hold of any model: exact plans are dense, lossy ones are their reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.fuzz.random_models import INPUT, build, padding_mask
from tests.fuzz.recipes import Recipe, consistent
from tests.models.examine import HALF
from tests.models.harness import (
    Graph,
    capture_calls,
    capture_trace,
    falling,
    tensors,
    varying_constants,
)
from tokenpass.edits import Edit
from tokenpass.errors import PlanMismatchError
from tokenpass.options import read_options
from tokenpass.pipeline import Planned, make_plan
from tokenpass.tracing import placeholders

EXACT, REFERENCE, FAR, LEAK = 1e-9, 1e-8, 10.0, 1e-10

MERGE, EVEN = ("token_merge", "tome"), ("token_prune", "uniform")
KEYS, ROW = ("token_prune", "key_norm"), ("token_prune", "attention_row")
RANDOM = ("token_prune", "random")

PINNED: dict[str, tuple[tuple[str, str], ...]] = {
    "merge": (MERGE, MERGE),
    "keys": (KEYS, MERGE),
    "row": (ROW, ROW),
    "even": (EVEN, EVEN),
    "random": (RANDOM, EVEN),
    "mixed": (MERGE, EVEN, MERGE),
}
FALLBACK = (EVEN, RANDOM)
"""What is left for streams whose tokens no policy may look at."""


@dataclass(frozen=True)
class Failure:
    """What went wrong with a recipe, and the graph and plan that it went wrong with."""

    recipe: Recipe
    stage: str
    message: str
    graph: Graph | None = field(default=None, compare=False, repr=False)
    plan: Planned | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        plain = Recipe().to_dict()
        told = {k: v for k, v in self.recipe.to_dict().items() if v != plain[k]}
        fields = ", ".join(f"{key}={value!r}" for key, value in told.items())
        return f"seed {self.recipe.seed}: {self.stage}: {self.message}\n  Recipe({fields})"


@dataclass
class Wrong(Exception):
    """Something does not hold; what was found so far is in `Check`."""

    stage: str
    message: str


def check(recipe: Recipe) -> Failure | None:
    """The first thing that does not hold of a recipe's model, or None."""
    run = Check(consistent(recipe))
    try:
        run.everything()
    except Wrong as wrong:
        return Failure(recipe, wrong.stage, wrong.message, run.graph, run.plan)
    return None


class Check:
    """One recipe's way through tokenpass; `lossy` says whether anything was edited in the end."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.graph: Graph | None = None
        self.plan: Planned | None = None
        self.lossy = False

    def everything(self) -> None:
        """All stages; raises `Wrong` at the first that fails."""
        model, call = build(self.recipe)
        self.graph = graph = attempt("capture", lambda: self.captured(model, call))
        wrong = attempt("labels", lambda: varying_constants(graph))
        if wrong:
            raise Wrong("labels", wrong[0])
        dense = graph.dense()
        self.exact(graph, dense)
        self.plan = plan = attempt("plan", lambda: self.planned(graph))
        module = None if plan is None else plan.module
        if plan is None or module is None or plan.exact:
            return
        self.lossy = True
        got = attempt("run", lambda: graph.run(module))
        compared("dense", got, dense, FAR)
        if all(rejection.code != "barrier" for rejection in plan.plan.rejections):
            expected = attempt("reference", lambda: graph.reference(plan))
            compared("reference", got, expected, REFERENCE)
        self.future(graph, plan, dense, got)

    def captured(self, model: nn.Module, call: dict[str, Any]) -> Graph:
        """The graph of the model's call."""
        if not self.recipe.dynamo:
            return capture_trace(model, call)
        (graph,) = capture_calls(model, [call], dynamic=False)
        return graph

    def exact(self, graph: Graph, dense: list[Any]) -> None:
        """Budget 1.0 changes nothing that can be seen."""
        options = read_options({"budget": 1.0})
        self.plan = plan = attempt("exact", lambda: make_plan(graph.view, graph.captured, options))
        module = plan.module
        if module is not None:
            compared("exact", attempt("exact", lambda: graph.run(module)), dense, EXACT)

    def planned(self, graph: Graph) -> Planned | None:
        """The plan that the recipe asks for; None where no edit fits."""
        if self.recipe.edits == "budget":
            return make_plan(graph.view, graph.captured, read_options(HALF))
        edits = self.pinned(graph)
        try:
            return graph.planned(edits, seed=self.recipe.seed) if edits else None
        except PlanMismatchError:  # refused with a rejection
            return None

    def pinned(self, graph: Graph) -> Sequence[Edit]:
        """Edits that fall along the layers."""
        wanted = PINNED[self.recipe.edits]
        if not graph.view.streams:
            return []
        for names in (wanted, FALLBACK):
            edits = falling(graph, names, self.recipe.keep)
            if edits:
                return edits
        return []

    def future(self, graph: Graph, plan: Planned, dense: list[Any], got: list[Any]) -> None:
        """What comes last in a causal model moves nothing before it that is no padding.

        A padded query may lose the only key that it saw, and then sees all of them alike.
        """
        recipe = self.recipe
        if recipe.causal == "none" or recipe.pooling != "all" or plan.module is None:
            return
        moved = Graph(graph.captured, graph.view, last_token_moved(graph))
        places = [i for i, out in enumerate(dense) if all_tokens(out, recipe)]
        real = padding_mask(recipe)[:, :-1].bool()
        after_dense, after = moved.dense(), moved.run(plan.module)
        for at in places:
            if distance(after_dense[at][:, :-1], dense[at][:, :-1]) > LEAK:
                continue  # the model itself looks ahead
            moves = distance(after[at][:, :-1][real], got[at][:, :-1][real])
            if moves > LEAK:
                raise Wrong("future", f"output {at}: earlier positions move by {moves:.2e}")


def attempt(stage: str, call: Callable[[], Any]) -> Any:
    """A call's result; whatever it raises is what went wrong in this stage."""
    try:
        return call()
    except Exception as error:
        told = str(error).strip().splitlines() or [""]
        message = f"{type(error).__name__}: {told[0][:300]}"
        raise Wrong(f"{stage} raises", message) from error


def compared(stage: str, got: list[Any], expected: list[Any], limit: float) -> None:
    """Raise `Wrong` unless shapes agree, values are finite, and the distance is below the limit."""
    for x, y in zip(tensors(got), tensors(expected), strict=True):
        if x.shape != y.shape:
            raise Wrong(stage, f"shape {tuple(x.shape)} instead of {tuple(y.shape)}")
        if not torch.isfinite(x).all():
            raise Wrong(stage, "an output is not finite")
        if not distance(x, y) < limit:
            raise Wrong(stage, f"relative distance {distance(x, y):.2e}, expected < {limit:.0e}")


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((x - y).norm() / y.norm().clamp_min(1e-30))


def all_tokens(out: Any, recipe: Recipe) -> bool:
    """Whether an output is `[batch, tokens, ..]`."""
    sizes = (recipe.batch, recipe.tokens)
    return isinstance(out, torch.Tensor) and out.dim() == 3 and out.shape[:2] == sizes


def last_token_moved(graph: Graph) -> tuple[Any, ...]:
    """The call's inputs with another last token."""
    out, data = list(graph.inputs), set(graph.captured.data_inputs)
    for at, node in enumerate(placeholders(graph.captured.module)):
        value = out[at]
        if node in data and value.dim() == 3 and value.shape[2] == INPUT:
            out[at] = torch.cat([value[:, :-1], value[:, -1:] + 1.0], 1)
    return tuple(out)
