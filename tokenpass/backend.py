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
from typing import Any

from torch.fx import GraphModule

from tokenpass.capture.dynamo import Captured, CaptureRefused, capture
from tokenpass.config import Config
from tokenpass.edits import Plan, Rejection
from tokenpass.errors import FallbackWarning, UserError
from tokenpass.graph.view import analyse, fingerprint
from tokenpass.lower.eager import lower_eager
from tokenpass.lower.inductor import inductor_patches, lower_inductor
from tokenpass.options import read_options
from tokenpass.pipeline import Planned, make_plan
from tokenpass.report import LOG, GraphReport, text

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
    config = read_options(options, mode)
    try:
        return compile_graph(module, example_inputs, config)
    except UserError:
        raise
    except Exception as cause:
        if config.on_failure == "raise":
            raise
        return fall_back(module, example_inputs, config, cause)


def compile_graph(
    module: GraphModule, example_inputs: Sequence[Any], config: Config
) -> Callable[..., Any]:
    """Capture, analyse, plan, rewrite, lower."""
    start = time.perf_counter()
    try:
        captured = capture(module, example_inputs)
    except CaptureRefused as refused:
        plan = Plan("", budget=config.budget or 1.0, rejections=(refused.rejection,))
        return lower_dense(module, example_inputs, config, GraphReport("dense", plan))
    view = analyse(captured.module, list(captured.data_inputs))
    training = training_refusal(captured, config)
    if training is not None:
        plan = Plan(
            fingerprint(captured.module), budget=config.budget or 1.0, rejections=(training,)
        )
        return lower_dense(module, example_inputs, config, GraphReport("dense", plan))
    planned = make_plan(view, captured, config)
    return lower_planned(module, example_inputs, config, planned, time.perf_counter() - start)


def lower_planned(
    module: GraphModule,
    example_inputs: Sequence[Any],
    config: Config,
    planned: Planned,
    seconds: float,
) -> Callable[..., Any]:
    """Lower the rewritten graph, or Dynamo's own where nothing was edited."""
    report = planned.report(seconds)
    if planned.module is None:
        return lower_dense(module, example_inputs, config, report)
    record(report)
    return lower(planned.module, example_inputs, config)


def lower(module: GraphModule, example_inputs: Sequence[Any], config: Config) -> Callable[..., Any]:
    """The lowering that the options name."""
    if config.lowering == "eager":
        return lower_eager(module, example_inputs)
    return lower_inductor(module, example_inputs, inductor_patches(config.inductor))


def lower_dense(
    module: GraphModule, example_inputs: Sequence[Any], config: Config, report: GraphReport
) -> Callable[..., Any]:
    """The graph as Dynamo gave it, listed as dense: bit-equal to the lowering without tokenpass."""
    record(report)
    return lower(module, example_inputs, config)


def fall_back(
    module: GraphModule, example_inputs: Sequence[Any], config: Config, cause: Exception
) -> Callable[..., Any]:
    """Dense, with one warning that names what failed."""
    summary = f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
    warnings.warn(
        f"tokenpass compiled a graph dense because of {summary} "
        f"(options={{'on_failure': 'raise'}} raises instead)",
        FallbackWarning,
        stacklevel=2,
    )
    log.debug("fallback", exc_info=cause)
    plan = Plan("", budget=config.budget or 1.0)
    return lower_dense(module, example_inputs, config, GraphReport("fallback", plan, cause=summary))


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
    """Remember a report and tell the log."""
    LOG.add(report)
    log.info("%s", text(report))


def reset() -> None:
    """Forget all reports (compiled code belongs to Dynamo: `torch._dynamo.reset()`)."""
    LOG.clear()
