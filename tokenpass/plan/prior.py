"""Error before any calibration: a rough prior of what removing tokens does to the main output.

    error^2 = sum over edits of (weight * removed^EXPONENT * crowding)^2
    crowding = 1 + CROWDED * exp(-gap / REST)

with `removed` the share of the incoming tokens that an edit removes and `gap` the distance to the
stage before it, as a share of the attention layers (no crowding for the first stage). Squares add,
so several steps lose less than one abrupt cut, and steps that follow each other closely lose more
than spread ones. How the constants were fitted stands in docs/decisions/0005-planner.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenpass.plan.choice import Choice

EXPONENT = 1.15
CROWDED = 0.7
REST = 1 / 6


def edit_error(choice: Choice, incoming: int, level: int, gap: float | None) -> float:
    """Prior relative L2 error of one edit (0 where it removes nothing)."""
    if level >= incoming:
        return 0.0
    removed = (incoming - level) / incoming
    crowding = 1.0 if gap is None else 1.0 + CROWDED * math.exp(-gap / REST)
    return choice.weight * removed**EXPONENT * crowding


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
