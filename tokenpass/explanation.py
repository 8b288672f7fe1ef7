"""`tokenpass.explain`: what would be done to a model and why, with nothing compiled."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from tokenpass.backend import plan_graph, summarised
from tokenpass.config import Config
from tokenpass.dynamo_state import as_uncompiled, forgotten
from tokenpass.edits import Plan
from tokenpass.errors import OptionError, UserError
from tokenpass.options import read_options
from tokenpass.pipeline.kernels import KernelUse, kernels_of
from tokenpass.report import GraphReport, text


@dataclass(frozen=True, repr=False)
class Explanation:
    """One report for each graph that `torch.compile` would make of the call, in order.

    Printing it tells everything; `graphs` holds the same as values, `kernels` the generated kernels
    of each graph.
    """

    graphs: tuple[GraphReport, ...]
    kernels: tuple[tuple[KernelUse, ...], ...] = ()

    def __str__(self) -> str:
        if not self.graphs:
            return "tokenpass: torch.compile finds no graph in this call"
        if len(self.graphs) == 1:
            return text(self.graphs[0])
        count = len(self.graphs)
        parts = [f"graph {at} of {count}\n{text(g)}" for at, g in enumerate(self.graphs, 1)]
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        return str(self)

    def save_plan(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as a file that `options={"config": path}` runs again.

        Raises `UserError` unless there is exactly one graph with a plan: a plan file pins the graph
        whose fingerprint it carries.
        """
        if len(self.graphs) != 1:
            raise UserError(
                f"save_plan: expected one graph, got {len(self.graphs)}: a plan file pins one "
                'graph (find graph breaks with TORCH_LOGS="graph_breaks", or explain the submodule '
                "that you compile; each graph's own plan is in `graphs[i].plan_yaml`)"
            )
        if not self.graphs[0].plan_yaml:
            raise UserError(f"save_plan: there is no plan: {text(self.graphs[0])}")
        Path(path).write_text(self.graphs[0].plan_yaml, encoding="utf-8")


def explain(
    model: Callable[..., Any],
    /,
    *args: Any,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Plan `model(*args, **kwargs)` as `torch.compile` with these options would; compile nothing.

    The model runs once, eagerly, so that the graphs behind graph breaks are seen too; what Dynamo
    learned on the way is forgotten again. Grad mode, eval mode and dtypes are those of the call.

    The keyword `options` is always tokenpass's own. A model whose forward takes `options` gets its
    own by position, or inside `functools.partial(model, options=...)`.

    Raises `OptionError` or `ConfigError` for wrong options, `PlanMismatchError` for a pinned plan
    of another graph, and whatever the model itself raises. With `on_failure: raise` a failure of
    tokenpass is raised; otherwise it is told in the graph's report.
    """
    config = read_own(model, options)
    collector = Collector(config)
    with forgotten(collector), as_uncompiled(model) as plain:
        torch.compile(plain, backend=collector)(*args, **kwargs)
    if collector.errors:
        raise collector.errors[0]
    return Explanation(tuple(collector.reports), tuple(collector.kernels))


class Collector:
    """A backend that plans each graph and runs it eagerly."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.reports: list[GraphReport] = []
        self.kernels: list[tuple[KernelUse, ...]] = []
        self.errors: list[Exception] = []

    def __call__(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        # an exception would leave Dynamo wrapped in one of its own
        try:
            made = plan_graph(module, example_inputs, self.config)
            self.reports.append(made.report)
            self.kernels.append(() if made.planned is None else kernels_of(made.planned))
        except UserError as error:
            self.errors.append(error)
        except Exception as error:  # whatever the backend would fall back from
            if self.config.on_failure == "raise":
                self.errors.append(error)
            budget = self.config.budget or 1.0
            told = GraphReport("fallback", Plan("", budget=budget), cause=summarised(error))
            self.reports.append(told)
            self.kernels.append(())
        return module.forward


def read_own(model: Callable[..., Any], options: Mapping[str, Any] | None) -> Config:
    """The options; an error says whose they are where the model takes `options` too."""
    try:
        return read_options(options)
    except OptionError as error:
        target = model.forward if isinstance(model, torch.nn.Module) else model
        try:
            names = inspect.signature(target).parameters
        except (TypeError, ValueError):
            raise error from None
        if "options" not in names:
            raise
        raise OptionError(
            f"{error}\n(the keyword `options` is tokenpass's; give the model's own by position or "
            "with functools.partial)"
        ) from error
