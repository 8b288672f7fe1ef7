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

from torch.fx import Node

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config, PassSpec
from tokenpass.edits import Edit, Rejection
from tokenpass.graph.layers import layer_prefixes, numbered_prefixes, under
from tokenpass.graph.projections import projections
from tokenpass.options import all_passes
from tokenpass.passes.base import (
    EntryMask,
    LossyChoice,
    LossyContext,
    LossyRegionPass,
    RegionContext,
)
from tokenpass.passes.projection_tail import MOST_ROWS
from tokenpass.pipeline.facts import mask_facts
from tokenpass.pipeline.planned import NOT_PAYING, Planned, declined
from tokenpass.pipeline.regions import (
    Named,
    carry_out_regions,
    in_graph_order,
    region_context,
    static_inputs,
    unserved,
    weight_bytes,
    with_regions,
)
from tokenpass.plan.allocation import Allocation, Curve, allocate
from tokenpass.tracing import fake_value, source_line

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
        choices, rejections = self.found
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
        return best if pays or self.fixed else declined(known, budget)

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
        return bool(self.specs) and (over or asked or self.fixed)

    @cached_property
    def specs(self) -> list[tuple[LossyRegionPass, PassSpec]]:
        """The passes that may act, and what the user says of each.

        Without a calibration, those that the user names: what a step of decoding loses stays in
        its cache, and a prior says little about one model.
        """
        passes = {item.name: item for item in all_passes() if isinstance(item, LossyRegionPass)}
        if self.config.passes is None:
            if self.context.calibration is None:
                return []
            return [(item, PassSpec(name=name)) for name, item in passes.items()]
        return [(passes[spec.name], spec) for spec in self.config.passes if spec.name in passes]

    @property
    def unnamed(self) -> tuple[Rejection, ...]:
        """Why nothing is left out of a graph of few rows that costs more than the budget."""
        budget = self.config.budget
        if self.config.passes is not None or budget is None or self.exact.plan.share <= budget:
            return ()
        context = self.context
        if context.calibration is not None:
            return ()
        found = projections(context.module.graph, context.static)
        rows = [math.prod(fake_value(node).shape[:-1]) for node in found]
        few = any(isinstance(count, int) and count <= MOST_ROWS for count in rows)
        if not few:
            return ()
        names = [item.name for item in all_passes() if isinstance(item, LossyRegionPass)]
        because = "without a calibration it acts only where `passes` names it"
        return tuple(Rejection("not_calibrated", name, because) for name in names)

    @property
    def fixed(self) -> bool:
        """Whether the user fixed a level."""
        return any(fixed_share(spec) is not None for _, spec in self.specs)

    @cached_property
    def found(self) -> tuple[list[tuple[LossyChoice, float | None]], tuple[Rejection, ...]]:
        """What could be left out, with the share that the user fixed."""
        prefixes = self.prefixes
        found: list[tuple[LossyChoice, float | None]] = []
        rejections: list[Rejection] = []
        taken: set[str] = set()
        for item, spec in self.specs:
            told = LossyContext(spec.policy, self.config.seed)
            choices, refused = item.choices(self.context, told)
            inside = [c for c in choices if in_scope(spec, c.site, prefixes)]
            rejections += gathered(refused)
            if not choices and not refused:
                because = f"{spec.policy or 'its policy'} finds no linear layer to act on"
                rejections.append(Rejection("no_projection", item.name, because))
            if choices and not inside:
                because = f"none of the {len(choices)} projections is in what it is limited to"
                hint = f"they are called {choices[0].site}; layers count from 0"
                rejections.append(Rejection("out_of_scope", item.name, because, hint))
            for one in inside:
                reason = unserved(one.replacement(one.highest), self.captured)
                if reason is not None:
                    rejections.append(reason)
                elif one.site not in taken:
                    taken.add(one.site)
                    found.append((one, fixed_share(spec)))
        found, more = self.same_rows(found)
        rejections += more
        instead = {n for one, _ in found for n in one.replacement(one.highest).instead}
        found = [pair for pair in found if origin(pair[0]) not in instead]
        return found, tuple(rejections)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The paths of the layers."""
        found = layer_prefixes(self.tokens.view.regions)
        names = projections(self.context.module.graph, self.context.static).values()
        return found or numbered_prefixes(name.rsplit(":", 1)[0] for name in names)

    def same_rows(
        self, found: list[tuple[LossyChoice, float | None]]
    ) -> tuple[list[tuple[LossyChoice, float | None]], list[Rejection]]:
        """Choices whose rows are all there, where rows decide together what is left out."""
        static = static_inputs(self.tokens.view.module, self.captured)
        names = projections(self.tokens.view.module.graph, static)
        dense = {site: fake_value(node).shape for node, site in names.items()}
        kept, refused = list[tuple[LossyChoice, float | None]](), list[Rejection]()
        for choice, share in found:
            node = origin(choice)
            few = math.prod(fake_value(node).shape[:-1])
            same = choice.site in dense and str(few) == str(math.prod(dense[choice.site][:-1]))
            if same or str(few) == "1" or choice.mask(choice.highest).threshold is not None:
                kept.append((choice, share))
                continue
            because = f"{choice.policy} compares rows, and some of them have left"
            hint = "tokenpass.calibrate, and a policy with fixed thresholds"
            refused.append(Rejection("unalignable", choice.site, because, hint, source_line(node)))
        return kept, refused

    @cached_property
    def context(self) -> RegionContext:
        """That graph, as region passes are told of it."""
        return region_context(self.tokens, self.captured, self.config)

    @property
    def able(self) -> bool:
        """Whether there is anything that could be left out."""
        return self.wanted and bool(self.found[0])

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
        for choice, fixed in self.found[0]:
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
                site, hint = self.found[0][at][0].site, "raise pack_memory"
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
        choice, fixed = self.found[0][at]
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
        pairs = zip(self.found[0], found.levels, strict=True)
        levels = [
            (choice, self.shares(choice, fixed)[level])
            for (choice, fixed), level in pairs
            if level != LEFT_ALONE
        ]
        return [(choice, share) for choice, share in levels if share]

    def make(self, found: Allocation, rejections: tuple[Rejection, ...]) -> Planned:
        """The graph of an allocation, with the exact replacements of what it leaves."""
        chosen = in_graph_order(self.context, self.lossy(found))
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


def gathered(rejections: Sequence[Rejection]) -> list[Rejection]:
    """Rejections for one reason as one: a prompt has too many rows for every projection alike."""
    alike: dict[tuple[str, str], list[Rejection]] = {}
    for one in rejections:
        alike.setdefault((one.code, one.because), []).append(one)
    return [
        same[0]
        if len(same) == 1
        else replace(same[0], where=f"{same[0].where} and {len(same) - 1} more")
        for same in alike.values()
    ]


def with_rejections(planned: Planned, more: tuple[Rejection, ...]) -> Planned:
    """A plan that says of more places why they were left alone."""
    plan = replace(planned.plan, rejections=(*planned.plan.rejections, *more))
    return replace(planned, plan=plan)


def fixed_share(spec: PassSpec) -> float | None:
    """The share that the user fixed; None where the planner decides."""
    share = getattr(spec.options, "sparsity", "auto")
    return None if share == "auto" else float(share)


def origin(choice: LossyChoice) -> Node:
    """The projection of a choice."""
    return choice.replacement(choice.highest).origin


def in_scope(spec: PassSpec, site: str, prefixes: Sequence[str]) -> bool:
    """Whether a pass may act at a projection, which is named by its site or its module's path."""
    return spec.covers(layer_of_site(site, prefixes), site, site.rsplit(":", 1)[0])


def layer_of_site(site: str, prefixes: Sequence[str]) -> int | None:
    """The layer whose modules a projection belongs to; None outside all of them."""
    path = site.rsplit(":", 1)[0]
    return next((at for at, prefix in enumerate(prefixes) if prefix and under(path, prefix)), None)


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


def pinned_lossy(
    planned: Planned, captured: Captured, config: Config, edits: Sequence[Edit]
) -> tuple[list[Named], dict[str, EntryMask], tuple[Rejection, ...]]:
    """The replacements that pinned edits name, those the graph has, and their masks by site.

    Rejections say why it lacks others.
    """
    context = region_context(planned, captured, config)
    passes = {item.name: item for item in all_passes() if isinstance(item, LossyRegionPass)}
    found: list[Named] = []
    masks: dict[str, EntryMask] = {}
    rejections: list[Rejection] = []
    for name, policy in dict.fromkeys((edit.pass_name, edit.policy) for edit in edits):
        told = LossyContext(policy, planned.plan.seed)
        all_choices, refused = passes[name].choices(context, told)
        choices = {choice.site: choice for choice in all_choices}
        rejections += refused
        for edit in edits:
            if (edit.pass_name, edit.policy) == (name, policy) and edit.site in choices:
                choice, share = choices[edit.site], float(edit.level)
                made = choice.replacement(share)
                reason = unserved(made, captured)
                if reason is not None:
                    rejections.append(reason)
                    continue
                found.append((name, made))
                masks[edit.site] = choice.mask(share)
    return found, masks, tuple(rejections)
