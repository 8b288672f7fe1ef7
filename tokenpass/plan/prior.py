"""Error before any calibration: a rough prior of what removing tokens does to the main output.

    error^2 = sum over edits of (weight * profile(depth) * removed^EXPONENT)^2

with `removed` the share of the tokens coming in that an edit removes and `depth` the share of the
attention layers before it. An exponent above one says that many small steps lose less than one
abrupt cut. The constants are fitted as docs/decisions/0005-planner.md describes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenpass.plan.choice import Choice

EXPONENT = 1.4
EARLY = 1.25
LATE = 0.75


def edit_error(choice: Choice, incoming: int, level: int) -> float:
    """Prior relative L2 error of one edit (0 where it removes nothing)."""
    if level >= incoming:
        return 0.0
    removed = (incoming - level) / incoming
    profile = EARLY + (LATE - EARLY) * choice.depth
    return choice.weight * profile * removed**EXPONENT


def plan_error(choices: Sequence[Choice], levels: Sequence[int]) -> float:
    """Prior relative L2 error of all edits of a plan."""
    total, incoming = 0.0, {}
    for choice, level in zip(choices, levels, strict=True):
        before = incoming.get(choice.stream, choice.tokens)
        total += edit_error(choice, before, level) ** 2
        incoming[choice.stream] = level
    return total**0.5
