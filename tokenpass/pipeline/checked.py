"""`verify`: a compiled graph held against dense and against the reference of its plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Interpreter
from torch.utils._pytree import tree_leaves

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config
from tokenpass.lower.carried import CarryingRun
from tokenpass.lower.verify import Promise, compare, is_random, separate, verified
from tokenpass.pipeline.facts import reference_of
from tokenpass.pipeline.fuel import bisecting, first_bad_edit
from tokenpass.pipeline.planned import Planned
from tokenpass.tracing import output_nodes


def checked(
    edited: Callable[..., Any], planned: Planned, captured: Captured, config: Config
) -> Callable[..., Any]:
    """`edited`, compared as `config.verify` says; a defect can name the edit that brought it.

    The reference is told what the call itself was given.
    """
    if config.verify == "never":
        return edited

    def blame(inputs: Sequence[Any]) -> str:
        if not bisecting():
            return ""
        bad = first_bad_edit(
            planned, captured, config, lambda part: differs(part, inputs, config) is not None
        )
        if bad is None:
            return "; run eagerly, the graph does not differ: its lowering does"
        return f"; first bad edit: {bad.pass_name}/{bad.policy} at {bad.site} ({bad.level})"

    return verified(
        edited,
        planned.view.module,
        promise(planned, config),
        how=config.verify,
        on_failure=config.on_failure,
        reference=lambda inputs: reference_of(planned, given_to(edited)).run(*inputs),
        blame=blame,
    )


def given_to(edited: Callable[..., Any]) -> dict[str, torch.Tensor]:
    """The thresholds that the last call was given by earlier ones, by site."""
    return edited.thresholds() if isinstance(edited, CarryingRun) else {}


def differs(planned: Planned, inputs: Sequence[Any], config: Config) -> str | None:
    """What is wrong with a plan's graph, run eagerly; None if nothing is."""
    dense = planned.view.module
    told = promise(planned, config)

    def outputs(run: Callable[..., Any]) -> list[Any]:
        with torch.no_grad():
            return tree_leaves(run(*(separate(value) for value in inputs)))

    return compare(
        outputs(Interpreter(planned.module or dense).run),
        outputs(Interpreter(dense).run),
        told,
        is_random(dense),
        None if told.exact else outputs(reference_of(planned).run),
    )


def promise(planned: Planned, config: Config) -> Promise:
    """What the edited graph's outputs must be like."""
    view, plan = planned.view, planned.plan
    outputs = output_nodes(view.module)
    short = view.caches if config.shorter_cache else frozenset()
    return Promise(
        plan.fingerprint,
        planned.exact,
        plan.error,
        outputs.index(view.main) if view.main in outputs else None,
        frozenset(at for at, node in enumerate(outputs) if node in short),
    )
