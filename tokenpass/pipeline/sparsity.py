"""Lossy replacements of regions: what is left out where, so that a plan meets its budget.

They come behind the token edits, on the graph that those gave, and before the exact replacements,
which take what is left. What a level costs is read off the cost of graphs with one region replaced,
one for each kind of region, at two levels: bytes and time are linear in what is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config
from tokenpass.edits import Rejection
from tokenpass.passes.base import LossyChoice
from tokenpass.pipeline.choices import Choices
from tokenpass.pipeline.facts import mask_facts
from tokenpass.pipeline.planned import NOT_PAYING, Planned, declined
from tokenpass.pipeline.regions import (
    Named,
    carry_out_regions,
    in_graph_order,
    weight_bytes,
    with_regions,
)
from tokenpass.plan.allocation import Allocation, Curve, allocate

LEVELS = 14
"""Levels of a region between none and the highest."""

PRICED = (0.25, 1.0)
"""Where between none and the highest the cost of a kind is read."""

LEFT_ALONE = -1
"""Instead of a level: `pack_memory` has no room for the region's copy, at any level."""

CORRECTIONS = 3
"""Graphs made at most while what regions save together proves less than by themselves."""


@dataclass(frozen=True, eq=False)
class Sparsifier:
    """Plans one graph's lossy replacements.

    `tokens`: the plan before any region was replaced; `exact`: the same with exact replacements.
    """

    tokens: Planned
    exact: Planned
    captured: Captured
    config: Config

    def plan(self) -> Planned:
        """The exact plan, or one that leaves entries out down to the budget."""
        if not self.wanted:
            return with_rejections(self.exact, self.unnamed)
        choices, rejections = self.choices.found
        known = with_rejections(self.exact, rejections)
        if not choices:
            return known
        budget, dense = self.config.budget, self.exact.plan.dense_cost
        aim = None if budget is None else budget * dense - self.exact.plan.planned_cost
        best: Planned | None = None
        for _ in range(CORRECTIONS):
            allocation, refused = self.allocated(aim)
            if not self.chosen(allocation):
                known = self.left_alone(known, allocation, refused)
                break
            made = self.make(allocation, (*rejections, *refused))
            if best is None or made.plan.planned_cost < best.plan.planned_cost:
                best = made
            if aim is None or budget is None or allocation.notes or made.plan.share <= budget:
                break
            aim -= (made.plan.share - budget) * dense * 1.05
        if best is None:
            return known
        pays = best.plan.planned_cost < known.plan.planned_cost
        return best if pays or self.choices.fixed else declined(known, budget)

    def left_alone(
        self, known: Planned, found: Allocation, refused: tuple[Rejection, ...]
    ) -> Planned:
        """The exact plan, saying why nothing is left out."""
        plan = known.plan
        plan = replace(plan, rejections=(*plan.rejections, *refused))
        if not refused and self.config.max_error is None:
            return declined(replace(known, plan=plan), self.config.budget)
        return replace(known, plan=replace(plan, notes=(*plan.notes, *found.notes)))

    @cached_property
    def wanted(self) -> bool:
        """Whether the options ask for anything that the exact plan does not give."""
        over = self.config.budget is not None and self.exact.plan.share > self.config.budget
        asked = self.config.max_error is not None and self.config.budget is None
        return bool(self.choices.specs) and (over or asked or self.choices.fixed)

    @property
    def unnamed(self) -> tuple[Rejection, ...]:
        """Why nothing is left out of a graph of few rows that costs more than the budget."""
        budget = self.config.budget
        if budget is None or self.exact.plan.share <= budget:
            return ()
        return self.choices.unnamed

    @cached_property
    def choices(self) -> Choices:
        """What could be left out of that graph."""
        return Choices(self.tokens, self.captured, self.config)

    @property
    def able(self) -> bool:
        """Whether there is anything that could be left out."""
        return self.wanted and bool(self.choices.found[0])

    def change(self, choice: LossyChoice, share: float) -> float:
        """What one replacement alone changes of the exact plan's cost."""
        exact = {(e.pass_name, e.site) for e in self.exact.plan.edits}
        one = carry_out_regions(
            self.tokens, self.captured, self.config, [(choice.pass_name, choice.replacement(share))]
        )
        made = with_regions(one, self.captured, self.config, exact)
        return made.plan.planned_cost - self.exact.plan.planned_cost

    @cached_property
    def curves(self) -> list[Curve]:
        """Every choice's levels, against what the exact plan does there."""
        lines: dict[str, tuple[float, float]] = {}
        found = []
        for choice, fixed in self.choices.found[0]:
            if choice.kind not in lines:
                lines[choice.kind] = self.line(choice)
            start, slope = lines[choice.kind]
            shares = self.shares(choice, fixed)
            costs = [0.0 if s == 0 else start + slope * choice.density(s) for s in shares]
            found.append(Curve(tuple(costs), error_curve(choice, shares)))
        return found

    def line(self, choice: LossyChoice) -> tuple[float, float]:
        """What a choice changes of the exact plan's cost where nothing is read, and for all."""
        shares = [choice.highest * at for at in PRICED]
        mild, strong = (self.change(choice, share) for share in shares)
        much, little = (choice.density(share) for share in shares)
        slope = (mild - strong) / (much - little)
        return strong - slope * little, slope

    def shares(self, choice: LossyChoice, fixed: float | None) -> tuple[float, ...]:
        """The levels of a choice; the first one leaves all as the exact plan has it."""
        if fixed is not None:
            return (fixed,)
        room = choice.highest - choice.natural
        steps = (round(choice.natural + room * at / LEVELS, 3) for at in range(1, LEVELS + 1))
        return (0.0, *(step for step in dict.fromkeys(steps) if choice.natural < step < 1))

    def allocated(self, aim: float | None) -> tuple[Allocation, tuple[Rejection, ...]]:
        """Levels within the budget whose copies of weights fit `pack_memory`.

        Where they do not, regions that save least for each byte of a copy are left alone.
        """
        curves, refused, alone = list(self.curves), list[Rejection](), set[int]()
        allowed = self.config.pack_memory * weight_bytes(self.captured)
        while True:
            found = allocate(curves, aim, self.error_left)
            levels = (LEFT_ALONE if at in alone else k for at, k in enumerate(found.levels))
            found = replace(found, levels=tuple(levels))
            used = [
                (curves[at].costs[level] / packed, at, packed)
                for at, level in enumerate(found.levels)
                if (packed := self.packed(at, level))
            ]
            over = sum(packed for *_, packed in used) + self.packed_exactly(found) - allowed
            if over <= 0 or not used:
                return found, tuple(refused)
            for _, at, packed in sorted(used, reverse=True):
                because = f"a second copy of the weight takes {packed / 1e6:.1f} MB"
                site, hint = self.choices.found[0][at][0].site, "raise pack_memory"
                refused.append(Rejection("pack_memory", site, because, hint))
                curves[at] = Curve((0.0,), (0.0,))
                alone.add(at)
                over -= packed
                if over <= 0:
                    break

    @property
    def error_left(self) -> float | None:
        """What the token edits leave of `max_error`: errors add as squares."""
        if self.config.max_error is None:
            return None
        return math.sqrt(max(self.config.max_error**2 - self.tokens.plan.error**2, 0.0))

    def packed(self, at: int, level: int) -> int:
        """Bytes of the copy that a choice needs at a level."""
        choice, fixed = self.choices.found[0][at]
        share = 0.0 if level == LEFT_ALONE else self.shares(choice, fixed)[level]
        return choice.replacement(share).packed_bytes if share else 0

    def packed_exactly(self, found: Allocation) -> int:
        """Bytes of the copies of exact replacements that stay."""
        exact = {edit.site for edit in self.exact.plan.edits}
        gone = [
            one
            for choice, share in self.chosen(found)
            if choice.site in exact
            for one in [choice.replacement(share)]
        ]
        return self.exact.packed_bytes - sum(one.packed_bytes for one in gone)

    def lossy(self, found: Allocation) -> list[Named]:
        """The lossy replacements of an allocation."""
        return [
            (choice.pass_name, choice.replacement(share)) for choice, share in self.chosen(found)
        ]

    def chosen(self, found: Allocation) -> list[tuple[LossyChoice, float]]:
        """The choices that leave something out, with their shares."""
        pairs = zip(self.choices.found[0], found.levels, strict=True)
        levels = [
            (choice, self.shares(choice, fixed)[level])
            for (choice, fixed), level in pairs
            if level != LEFT_ALONE
        ]
        return [(choice, share) for choice, share in levels if share]

    def make(self, found: Allocation, rejections: tuple[Rejection, ...]) -> Planned:
        """The graph of an allocation, with the exact replacements of what it leaves."""
        chosen = in_graph_order(self.choices.context, self.lossy(found))
        made = carry_out_regions(self.tokens, self.captured, self.config, chosen, rejections)
        made = with_regions(made, self.captured, self.config)
        error = math.hypot(self.tokens.plan.error, found.error)
        # what was said of token edits alone no longer holds
        notes = tuple(note for note in made.plan.notes if note != NOT_PAYING)
        if self.config.budget is not None and made.plan.share <= self.config.budget:
            notes = ()
        plan = replace(made.plan, error=error, notes=(*notes, *found.notes))
        kept = {choice.site: choice.mask(share) for choice, share in self.chosen(found)}
        masks = mask_facts(self.tokens.view.module, self.captured, kept)
        return replace(made, plan=plan, masks=masks)


def with_rejections(planned: Planned, more: tuple[Rejection, ...]) -> Planned:
    """A plan that says of more places why they were left alone."""
    plan = replace(planned.plan, rejections=(*planned.plan.rejections, *more))
    return replace(planned, plan=plan)


def error_curve(choice: LossyChoice, shares: Sequence[float]) -> tuple[float, ...]:
    """The estimated error of each share; every other one is between its neighbours."""
    found = [0.0 if share == 0 else math.nan for share in shares]
    last = len(shares) - 1
    for at, share in enumerate(shares):
        if share and (at % 2 == 0 or at == last or last < 3):
            found[at] = choice.error(share)
    for at, error in enumerate(found):
        if math.isnan(error):
            found[at] = (found[at - 1] + found[at + 1]) / 2
    return tuple(found)
