"""A candidate as the planner sees it: numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One place where tokens could leave.

    `stream`: which stream (they have counts of their own); `tokens`: its full length; `depth`:
    share of its attention layers before the site; `lowest`: least share of the incoming tokens
    that may stay; `never_below`: tokens that stay on top of it, at any level; `weight`: prior error of the
    policy; `fixed`: a share of the incoming tokens that the user asked for.
    """

    pass_name: str
    site: str
    policy: str
    stream: int
    tokens: int
    depth: float
    lowest: float
    never_below: int
    weight: float
    fixed: float | None = None

    def least(self, incoming: int) -> int:
        """The fewest tokens that may stay of those that come in."""
        return min(incoming, self.never_below + math.ceil(incoming * self.lowest))
