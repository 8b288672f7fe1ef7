"""A failure as a replay bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fuzz.check import Failure
from tests.models.examine import HALF
from tokenpass.bundle import Bundle, save_bundle
from tokenpass.bundle.folder import FORMAT, GRAPH, versions
from tokenpass.plan.plan_file import plan_to_yaml


def save(failure: Failure, folder: Path, seed: int | None = None) -> Path:
    """Write a failure's bundle; `seed` is the one that it was found with, before shrinking.

    Without a graph (capture itself failed) the recipe alone is written.
    """
    about: dict[str, Any] = {
        "recipe": failure.recipe.to_dict(),
        "seed": failure.recipe.seed if seed is None else seed,
        "stage": failure.stage,
        "message": failure.message,
    }
    graph, plan = failure.graph, failure.plan
    if graph is None:
        folder.mkdir(parents=True, exist_ok=True)
        data = {"format": FORMAT, "versions": versions(), "about": about, "graph": None}
        (folder / GRAPH).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        return folder
    # a plan is of no use where making it is what failed
    made = plan is not None and failure.stage != "plan"
    text = plan_to_yaml(plan.plan) if made and plan is not None else ""
    options = {"budget": 1.0} if failure.stage == "exact" else dict(HALF)
    return save_bundle(Bundle(graph.captured, graph.inputs, text, options, about), folder)
