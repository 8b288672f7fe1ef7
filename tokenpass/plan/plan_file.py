"""A plan as a YAML file, to show, edit, pin and run again: a config file with `edits`."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tokenpass.config import Config
from tokenpass.config_schema import VERSION
from tokenpass.edits import Edit, Plan
from tokenpass.errors import InternalError
from tokenpass.yaml_file import write_yaml

_HEADER = """\
# A tokenpass plan: run it again with options={"config": "<this file>"}.
# An edit's level may be changed and an edit may be removed; the fingerprint names the graph.
"""


def plan_to_yaml(plan: Plan) -> str:
    """The plan as the text of a config file.

    What the planner predicted stands beside the edits for people to read; a share or an error that
    was not predicted is left out. Notes and rejections become comments.
    """
    if not plan.fingerprint:
        raise InternalError("a plan without the fingerprint of its graph cannot be pinned")
    head: dict[str, object] = {
        "version": VERSION,
        "budget": plan.budget,
        "objective": plan.objective,
        "seed": plan.seed,
    }
    told: dict[str, object] = {"predicted_share": plan.share, "error": plan.error}
    if not plan.dense_cost:
        del told["predicted_share"]
    told = {key: value for key, value in told.items() if _is_finite(value)}
    parts = [_HEADER, _comments(plan.notes), write_yaml(head | told)]
    parts.append(write_yaml({"fingerprint": plan.fingerprint}))
    parts.append("edits:\n" if plan.edits else "edits: []\n")
    parts += [f"  - {_line(edit)}\n" for edit in plan.edits]
    parts.append(_comments(f"not edited: {rejection}" for rejection in plan.rejections))
    return "".join(parts)


def pinned_plan(config: Config) -> Plan | None:
    """The plan that a config file pins, or None where the planner decides.

    Its costs are relative (dense costs 1), as a file tells only the share that was predicted.
    """
    if config.edits is None:
        return None
    edits = (
        Edit(edit.pass_name, edit.site, edit.policy, edit.level, edit.span) for edit in config.edits
    )
    share = config.predicted_share
    return Plan(
        fingerprint=config.fingerprint or "",
        edits=tuple(edits),
        budget=1.0 if config.budget is None else config.budget,
        objective=config.objective,
        dense_cost=0.0 if share is None else 1.0,
        planned_cost=share or 0.0,
        error=config.error or 0.0,
        seed=config.seed,
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _line(edit: Edit) -> str:
    data: dict[str, object] = {
        "pass": edit.pass_name,
        "site": edit.site,
        "policy": edit.policy,
        "level": edit.level,
    }
    if edit.span:
        data["span"] = [list(pair) for pair in edit.span]
    return write_yaml(data, on_one_line=True).strip()


def _comments(texts: Iterable[str]) -> str:
    """Comment lines; what YAML allows nowhere, not even there, becomes a question mark."""
    lines = (line for text in texts for line in text.splitlines())
    return "".join(f"# {''.join(c if c.isprintable() else '?' for c in line)}\n" for line in lines)
