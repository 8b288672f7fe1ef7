"""One seed, as a worker process runs it."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.fuzz.check import Check, Failure, Wrong
from tests.fuzz.recipes import recipe
from tests.fuzz.saved import save
from tests.fuzz.shrink import shrink


def one(seed: int, folder: Path | None) -> tuple[str, str]:
    """A seed's outcome (`edited`, `dense` or `failed`) and, of a failure, what to print."""
    torch.set_num_threads(1)
    run = Check(recipe(seed))
    try:
        run.everything()
    except Wrong as wrong:
        found = Failure(run.recipe, wrong.stage, wrong.message, run.graph, run.plan)
        small = shrink(found)
        if folder is not None:
            save(small, folder / f"seed_{seed}", seed)
        return "failed", f"{found}\nshrunk: {small}"
    except Exception as error:  # the model or the check itself
        return "failed", f"seed {seed}: {type(error).__name__}: {error}\n  {run.recipe}"
    return ("edited" if run.lossy else "dense"), ""
