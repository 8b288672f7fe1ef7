"""The backend: the whole way of a graph, from Dynamo to a callable.

    capture -> analyse -> plan -> rewrite -> lower

Whatever fails on the way, the graph compiles dense through Inductor, with one warning that names
the cause (or raises, if the user says so).
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from tokenpass.capture.dynamo import Captured, CaptureRefused, capture
from tokenpass.capture.subclasses import all_parts, on_parts
from tokenpass.config import Config
from tokenpass.edits import Plan, Rejection
from tokenpass.errors import FallbackWarning, UserError
from tokenpass.graph.view import analyse, fingerprint
from tokenpass.lower.eager import lower_eager
from tokenpass.lower.inductor import inductor_patches, lower_inductor
from tokenpass.lower.kernels import installed_kernels
from tokenpass.options import read_options
from tokenpass.passed_on import passed_on
from tokenpass.passes.base import Observation
from tokenpass.pipeline import Planned, make_plan, report_of
from tokenpass.pipeline.carried import carrying, kept_of, told
from tokenpass.pipeline.checked import checked
from tokenpass.pipeline.fuel import first_edits, fuel_left
from tokenpass.report import LOG, GraphReport, details, text

log = logging.getLogger("tokenpass")


def tokenpass(
    module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The `torch.compile` backend: `torch.compile(model, backend="tokenpass", options={...})`.

    Raises `OptionError` or `ConfigError` for wrong options, `PlanMismatchError` for a pinned plan
    of another graph; everything else falls back to dense unless `on_failure` is `raise`.
    """
    try:
        config = read_options(options, mode)
    except UserError as error:
        raise passed_on(error) from None
    try:
        return compile_graph(module, example_inputs, config)
    except UserError as error:
        raise passed_on(error) from None
    except Exception as cause:
        if config.on_failure == "raise":
            raise
        return fall_back(module, example_inputs, config, cause)


def compile_graph(
    module: GraphModule, example_inputs: Sequence[Any], config: Config
) -> Callable[..., Any]:
    """Capture, analyse, plan, rewrite, lower."""
    made = plan_graph(module, example_inputs, config)
    run = lower_made(made, module, example_inputs, config)
    record(made.report)  # only now: a graph that could not be lowered is no edited one
    return run


def lower_made(
    made: Made, module: GraphModule, example_inputs: Sequence[Any], config: Config
) -> Callable[..., Any]:
    """The edited graph lowered, with its verification around it; the user's own if none is.

    Generated kernels stand ready for the operators that edits bring in. A graph that nothing edits
    may still have to keep something for later calls on its cache.
    """
    if made.planned is None or made.captured is None:
        return lower(module, example_inputs, config)
    graph, edited_module = carrying(made.planned, made.captured, made.kept), made.planned.module
    parts = all_parts(example_inputs)
    if graph is not None:
        installed_kernels()
        edited = graph.run(lower(graph.module, [*parts, *graph.examples], config))
    elif edited_module is not None:
        installed_kernels()
        edited = lower(edited_module, parts, config)
    else:
        return lower(module, example_inputs, config)
    run = checked(edited, made.planned, made.captured, config)
    return on_parts(run) if made.captured.over_parts else run


@dataclass(frozen=True, eq=False)
class Made:
    """A graph's report, and its plan where analysis came so far.

    `kept`: what the graph leaves for later calls on its cache.
    """

    report: GraphReport
    planned: Planned | None = None
    captured: Captured | None = None
    kept: tuple[Observation, ...] = ()


def plan_graph(module: GraphModule, example_inputs: Sequence[Any], config: Config) -> Made:
    """All that happens before lowering; nothing is compiled."""
    start = time.perf_counter()
    try:
        captured = capture(module, example_inputs)
    except CaptureRefused as refused:
        plan = Plan("", budget=config.budget or 1.0, rejections=(refused.rejection,))
        return Made(GraphReport("dense", plan))
    view = analyse(captured.module, list(captured.data_inputs), captured.examples)
    training = training_refusal(captured, config)
    if training is not None:
        mark = fingerprint(captured.module)
        plan = Plan(mark, budget=config.budget or 1.0, rejections=(training,))
        return Made(GraphReport("dense", plan))
    fuel = fuel_left()
    planned = make_plan(view, captured, config)
    if fuel is not None:
        planned = first_edits(planned, captured, config, fuel)
    kept = kept_of(planned, captured, config)
    planned = told(planned, kept)
    report = report_of(planned, time.perf_counter() - start)
    return Made(replace(report, goal=goal(config)), planned, captured, kept)


def goal(config: Config) -> str:
    """What the planner was asked for, to be shown."""
    if config.edits is not None:
        return f"plan of {config.origin}"
    parts = [
        f"{name} {value:g}"
        for name, value in (("budget", config.budget), ("max_error", config.max_error))
        if value is not None
    ]
    return " and ".join(parts)


def lower(module: GraphModule, example_inputs: Sequence[Any], config: Config) -> Callable[..., Any]:
    """The lowering that the options name."""
    if config.lowering == "eager":
        return lower_eager(module, example_inputs)
    return lower_inductor(module, example_inputs, inductor_patches(config.inductor))


def fall_back(
    module: GraphModule, example_inputs: Sequence[Any], config: Config, cause: Exception
) -> Callable[..., Any]:
    """Dense, with one warning that names what failed."""
    summary = summarised(cause)
    warnings.warn(
        f"tokenpass compiled a graph dense because of {summary} "
        f"(options={{'on_failure': 'raise'}} raises instead)",
        FallbackWarning,
        stacklevel=2,
    )
    log.debug("fallback", exc_info=cause)
    record(GraphReport("fallback", Plan("", budget=config.budget or 1.0), cause=summary))
    return lower(module, example_inputs, config)


def summarised(cause: Exception) -> str:
    """An exception on one line: its type, and the first line of its text that says something."""
    lines = (line.strip() for line in str(cause).splitlines())
    return f"{type(cause).__name__}: {next(filter(None, lines), '')}"


def training_refusal(captured: Captured, config: Config) -> Rejection | None:
    """Train-mode operators need `training: allow`; grad mode alone does not count as training."""
    if captured.train_mode is None or config.training == "allow":
        if captured.training:
            log.info("gradients are on: edits apply, and gradients flow through what is left")
        return None
    name, source = captured.train_mode
    return Rejection(
        "train_mode",
        name,
        "the graph has operators in training mode",
        "call model.eval(), or set training: allow",
        source,
    )


def record(report: GraphReport) -> None:
    """Remember a report and tell the log, at debug level with every place and the plan.

    A report that cannot be shown is no reason to lose a graph that runs.
    """
    LOG.add(report)
    for level, show in ((logging.INFO, text), (logging.DEBUG, details)):
        if not log.isEnabledFor(level):
            continue
        try:
            log.log(level, "%s", show(report))
        except Exception:
            log.exception("the report of a graph cannot be shown")


def reset() -> None:
    """Forget all reports (compiled code belongs to Dynamo: `torch._dynamo.reset()`)."""
    LOG.clear()
