"""Error before any calibration: a rough prior of what removing tokens does to the main output.

    error^2 = sum over edits of (weight * removed^(1 / (1 - LATER * depth)) * crowding)^2
    crowding = 1 + CROWDED * exp(-gap / REST)

with `removed` the share of the incoming tokens that an edit removes, `depth` the share of the
attention layers before it and `gap` the depth since the stage before (none: no crowding). Squares
add, so several steps lose less than one abrupt cut; steps that follow each other closely are
correlated and lose more than spread ones; late removals lose less, unless they are deep. How the
constants were fitted stands in docs/decisions/0005-planner.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenpass.plan.choice import Choice

LATER = 0.75
CROWDED = 1.5
REST = 1 / 6


def edit_error(choice: Choice, incoming: int, level: int, gap: float | None) -> float:
    """Prior relative L2 error of one edit (0 where it removes nothing)."""
    if level >= incoming:
        return 0.0
    removed = (incoming - level) / incoming
    crowding = 1.0 if gap is None else 1.0 + CROWDED * math.exp(-gap / REST)
    exponent = 1.0 / (1.0 - LATER * min(choice.depth, 1.0))
    return choice.weight * removed**exponent * crowding


def plan_error(choices: Sequence[Choice], levels: Sequence[int]) -> float:
    """Prior relative L2 error of all edits of a plan."""
    total = 0.0
    incoming: dict[int, int] = {}
    depth: dict[int, float] = {}
    for choice, level in zip(choices, levels, strict=True):
        before = incoming.get(choice.stream, choice.tokens)
        if level < before:
            last = depth.get(choice.stream)
            gap = None if last is None else choice.depth - last
            total += edit_error(choice, before, level, gap) ** 2
            depth[choice.stream] = choice.depth
        incoming[choice.stream] = level
    return total**0.5
