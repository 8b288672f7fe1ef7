"""Shrinking: the simplest recipe that still fails in the same stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from tests.fuzz.check import Failure, check
from tests.fuzz.recipes import Recipe, consistent

SIZES = ("layers", "batch", "tokens")
KEPT = {"seed", "edits", "keep", *SIZES, "width", "heads"}
"""Fields that are not simply turned off."""


def shrink(
    failure: Failure, test: Callable[[Recipe], Failure | None] = check, tries: int = 150
) -> Failure:
    """Take every step that still fails in the same stage, until none does or tries run out."""
    seen = {consistent(failure.recipe)}
    progress = True
    while progress:
        progress = False
        for simpler in steps(failure.recipe):
            if simpler in seen or tries <= 0:
                continue
            seen.add(simpler)
            tries -= 1
            found = test(simpler)
            if found is not None and found.stage == failure.stage:
                failure, progress = found, True
                break
    return failure


def steps(recipe: Recipe) -> Iterator[Recipe]:
    """Recipes with one thing simpler; what takes most away comes first."""
    plain = Recipe()
    changes: list[dict[str, Any]] = []
    if recipe.layers > 1:
        changes += [{"layers": n} for n in range(1, recipe.layers)]
    names = [f.name for f in fields(Recipe) if f.name not in KEPT]
    changes += [{name: getattr(plain, name)} for name in names]
    changes += [{"edits": name} for name in ("merge", "even")]
    changes += [{"width": plain.width, "heads": plain.heads}, {"batch": 1}, {"batch": 2}]
    changes += [{"tokens": n} for n in (plain.tokens, 10, 12, 16) if n < recipe.tokens]
    changes += [{"keep": plain.keep}, {"seed": 0}]
    order = {"merge": 0, "even": 1}
    for change in changes:
        name, value = next(iter(change.items()))
        if name == "edits" and order.get(recipe.edits, 2) <= order[str(value)]:
            continue
        if name == "batch" and recipe.batch <= int(str(value)):
            continue
        simpler = consistent(replace(recipe, **change))
        if simpler != recipe:
            yield simpler
