"""What tokenpass says about its own work, read in one place and absent where it says nothing.

`tokenpass.report.last_reports()` gives one report for each compiled graph. Here the plan and the
seconds that tokenpass itself took are picked from them; everything else in benchmarks reads these.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Reported:
    """Sums over the compiled graphs; `None` where tokenpass reported nothing.

    `share` is the predicted cost as a share of dense, `own_s` the seconds of tokenpass itself
    (capture, analysis, plan, rewrite), `edits` one line for each edit.
    """

    share: float | None = None
    own_s: float | None = None
    distinct_levels: int | None = None
    edits: tuple[str, ...] = ()


def last_reported() -> Reported:
    """What was reported about the graphs compiled last."""
    return summarise(_call("tokenpass.report", "last_reports") or ())


def predicted_share(
    model: nn.Module, inputs: Mapping[str, Any], options: Mapping[str, Any]
) -> float | None:
    """The cost, as a share of dense, that a dry run of `tokenpass.explain` predicts."""
    with torch.no_grad():
        explained = _call("tokenpass", "explain", model, options=dict(options), **inputs)
    reports = getattr(explained, "reports", None) or ([explained] if explained else [])
    return summarise(reports).share


def summarise(reports: Sequence[Any]) -> Reported:
    """Plans and seconds of several graphs, the costs added up."""
    plans = [plan for report in reports if (plan := getattr(report, "plan", None)) is not None]
    seconds = [own for report in reports if (own := _own_seconds(report)) is not None]
    edits = [edit for plan in plans for edit in plan.edits]
    dense = sum(plan.dense_cost for plan in plans)
    return Reported(
        share=sum(plan.planned_cost for plan in plans) / dense if dense else None,
        own_s=sum(seconds) if seconds else None,
        distinct_levels=len({edit.level for edit in edits}) if plans else None,
        edits=tuple(
            f"{edit.pass_name}/{edit.policy} at {edit.site}: {edit.level}" for edit in edits
        ),
    )


def _own_seconds(report: Any) -> float | None:
    """A number, or the seconds of each stage by name."""
    own = getattr(report, "own_seconds", None)
    return float(sum(own.values())) if isinstance(own, Mapping) else own


def _call(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """The function's result, or `None` where this tokenpass has no such function."""
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None
    return function(*args, **kwargs) if callable(function) else None
