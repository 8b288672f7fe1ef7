"""A candidate as the planner sees it: numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One place where tokens could leave.

    `stream`: which run of a stream's sites, from a place where all its tokens are there to the next
    (runs have counts of their own); `tokens`: its full length; `depth`:
    share of its attention layers before the site; `lowest`: least share of the incoming tokens
    that may stay; `never_below`: tokens that stay at any level; `spared`: tokens that stay beside
    the lowest share; `weight`: prior error of the policy; `fixed`: a share of the incoming tokens
    that the user asked for. `apart`: incoming tokens that never leave and that no share counts.
    `dynamic`: the length is; a single token that leaves would then be compiled as a constant, and
    lengths at which two do compile anew.
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
    spared: int = 0
    apart: int = 0
    dynamic: bool = False

    def kept(self, incoming: int, share: float) -> float:
        """How many stay if a share does of the incoming tokens that may leave."""
        return self.apart + (incoming - self.apart) * share

    def least(self, incoming: int) -> int:
        """The fewest tokens that may stay of those that come in."""
        share = math.ceil(self.kept(incoming, self.lowest))
        return min(incoming, max(self.never_below, share + self.spared))

    def settled(self, incoming: int, wanted: int) -> int:
        """How many of the incoming tokens stay if so many are wanted."""
        stay = min(incoming, max(self.least(incoming), wanted))
        return incoming if self.dynamic and incoming - stay == 1 else stay


def incoming_counts(choices: Sequence[Choice], levels: Sequence[int]) -> list[int]:
    """The tokens that come to each choice, if `levels[i]` are left behind choice i."""
    left: dict[int, int] = {}
    found = []
    for choice, level in zip(choices, levels, strict=True):
        found.append(left.get(choice.stream, choice.tokens))
        left[choice.stream] = level
    return found


def levels_used(choices: Sequence[Choice], levels: Sequence[int]) -> list[int | None]:
    """The count behind each choice that removes something, None for the others."""
    pairs = zip(incoming_counts(choices, levels), levels, strict=True)
    return [level if level < before else None for before, level in pairs]
