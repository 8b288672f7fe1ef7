"""Fuel: a plan cut to its first edits, and the bisection that finds the first bad one.

`TOKENPASS_FUEL=3` carries out at most three edits of every graph. `TOKENPASS_BISECT=1` makes a
verification that fails look for the first edit whose graph differs from the reference of the same
edits: it takes as many replays as the logarithm of their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config
from tokenpass.edits import Edit
from tokenpass.errors import OptionError
from tokenpass.pipeline.pinned import carry_out_pinned
from tokenpass.pipeline.planned import Planned

FUEL = "TOKENPASS_FUEL"
BISECT = "TOKENPASS_BISECT"


def fuel_left() -> int | None:
    """How many edits of each graph may be carried out; None for all.

    Raises:
        OptionError: The variable holds no count.
    """
    text = os.environ.get(FUEL, "")
    if not text:
        return None
    if not text.isdecimal():
        raise OptionError(f"{FUEL} must be a number of edits (0 or more), got {text!r}")
    return int(text)


def bisecting() -> bool:
    """Whether a failed verification looks for the first bad edit."""
    return os.environ.get(BISECT, "") not in ("", "0")


def first_edits(planned: Planned, captured: Captured, config: Config, count: int) -> Planned:
    """The same plan with its first `count` edits alone; the others are listed as dropped."""
    plan = planned.plan
    if count >= len(plan.edits):
        return planned
    cut = carry_out_pinned(
        planned.view,
        captured,
        config,
        replace(plan, edits=plan.edits[:count]),
        replace(plan, edits=(), planned_cost=plan.dense_cost, error=0.0),
        planned.dense,
        planned.profile,
        planned.sizes,
    )
    return replace(cut, plan=replace(cut.plan, dropped=plan.edits[count:]))


def first_bad_edit(
    planned: Planned,
    captured: Captured,
    config: Config,
    differs: Callable[[Planned], bool],
) -> Edit | None:
    """The edit with which a plan's graph starts to differ; None if the whole plan does not."""
    good, bad = 0, len(planned.plan.edits)
    if not bad or not differs(planned):
        return None
    while bad - good > 1:
        middle = (good + bad) // 2
        if differs(first_edits(planned, captured, config, middle)):
            bad = middle
        else:
            good = middle
    return planned.plan.edits[bad - 1]
