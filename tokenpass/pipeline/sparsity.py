"""Lossy replacements of regions: what is left out where, so that a plan meets its budget.

They come behind the token edits, on the graph that those gave, and before the exact replacements,
which take what is left. What a level costs is read off the cost of graphs with one region replaced,
one for each kind of region, at two levels: between them bytes and time are linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch.fx import GraphModule

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config, PassSpec
from tokenpass.edits import Edit, Rejection
from tokenpass.graph.layers import layer_prefixes, under
from tokenpass.graph.projections import gated, projection_region, projections
from tokenpass.options import all_passes
from tokenpass.passes.base import (
    EntryMask,
    LossyChoice,
    LossyContext,
    LossyRegionPass,
    RegionContext,
)
from tokenpass.pipeline.planned import Planned
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
from tokenpass.reference.facts import MaskFacts

LEVELS = 14
"""Levels of a region between none and the highest."""

PRICED = (0.25, 1.0)
"""Where between none and the highest the cost of a kind is read."""

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
            return self.exact
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
                known = with_rejections(known, refused)
                break
            made = self.make(allocation, (*rejections, *refused))
            if best is None or made.plan.planned_cost < best.plan.planned_cost:
                best = made
            if aim is None or budget is None or allocation.notes or made.plan.share <= budget:
                break
            aim -= (made.plan.share - budget) * dense * 1.05
        pays = best is not None and best.plan.planned_cost < known.plan.planned_cost
        return best if best is not None and (pays or self.fixed) else known

    @cached_property
    def wanted(self) -> bool:
        """Whether the options ask for anything that the exact plan does not give."""
        over = self.config.budget is not None and self.exact.plan.share > self.config.budget
        asked = self.config.max_error is not None and self.config.budget is None
        return bool(self.specs) and (over or asked or self.fixed)

    @cached_property
    def specs(self) -> list[tuple[LossyRegionPass, PassSpec]]:
        """The passes that may act, and what the user says of each."""
        passes = {item.name: item for item in all_passes() if isinstance(item, LossyRegionPass)}
        if self.config.passes is None:
            return [(item, PassSpec(name=name)) for name, item in passes.items()]
        return [(passes[spec.name], spec) for spec in self.config.passes if spec.name in passes]

    @property
    def fixed(self) -> bool:
        """Whether the user fixed a level."""
        return any(fixed_share(spec) is not None for _, spec in self.specs)

    @cached_property
    def found(self) -> tuple[list[tuple[LossyChoice, float | None]], tuple[Rejection, ...]]:
        """What could be left out, with the share that the user fixed."""
        prefixes = layer_prefixes(self.tokens.view.regions)
        found: list[tuple[LossyChoice, float | None]] = []
        rejections: list[Rejection] = []
        taken: set[str] = set()
        for item, spec in self.specs:
            told = LossyContext(spec.policy, self.config.seed)
            choices, refused = item.choices(self.context, told)
            inside = [c for c in choices if spec.covers(layer_of_site(c.site, prefixes), c.site)]
            rejections += refused
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
        return found, tuple(rejections)

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
                low, high = (choice.highest * at for at in PRICED)
                changes = self.change(choice, low), self.change(choice, high)
                slope = (changes[1] - changes[0]) / (high - low)
                lines[choice.kind] = changes[1] - slope * high, slope
            start, slope = lines[choice.kind]
            shares = self.shares(choice, fixed)
            costs = tuple(0.0 if share == 0 else start + slope * share for share in shares)
            found.append(Curve(costs, error_curve(choice, shares)))
        return found

    def shares(self, choice: LossyChoice, fixed: float | None) -> tuple[float, ...]:
        """The levels of a choice; the first one leaves all as the exact plan has it."""
        if fixed is not None:
            return (fixed,)
        room = choice.highest - choice.natural
        steps = (choice.natural + room * at / LEVELS for at in range(1, LEVELS + 1))
        return (0.0, *(round(step, 3) for step in steps))

    def allocated(self, aim: float | None) -> tuple[Allocation, tuple[Rejection, ...]]:
        """Levels within the budget whose copies of weights fit `pack_memory`.

        Where they do not, regions that save least for each byte of a copy are left alone.
        """
        curves, refused = list(self.curves), list[Rejection]()
        allowed = self.config.pack_memory * weight_bytes(self.captured)
        while True:
            found = allocate(curves, aim, self.error_left)
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
        curve = self.shares(choice, fixed)
        share = curve[level] if level < len(curve) else 0.0
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
        levels = [(choice, self.shares(choice, fixed)[level]) for (choice, fixed), level in pairs]
        return [(choice, share) for choice, share in levels if share]

    def make(self, found: Allocation, rejections: tuple[Rejection, ...]) -> Planned:
        """The graph of an allocation, with the exact replacements of what it leaves."""
        chosen = in_graph_order(self.context, self.lossy(found))
        made = carry_out_regions(self.tokens, self.captured, self.config, chosen, rejections)
        made = with_regions(made, self.captured, self.config)
        error = math.hypot(self.tokens.plan.error, found.error)
        plan = replace(made.plan, error=error, notes=(*made.plan.notes, *found.notes))
        kept = {choice.site: choice.mask(share) for choice, share in self.chosen(found)}
        masks = mask_facts(self.tokens.view.module, self.captured, kept)
        return replace(made, plan=plan, masks=masks)


def with_rejections(planned: Planned, more: tuple[Rejection, ...]) -> Planned:
    """A plan that says of more places why they were left alone."""
    plan = replace(planned.plan, rejections=(*planned.plan.rejections, *more))
    return replace(planned, plan=plan)


def fixed_share(spec: PassSpec) -> float | None:
    """The share that the user fixed; None where the planner decides."""
    share = getattr(spec.options, "sparsity", "auto")
    return None if share == "auto" else float(share)


def layer_of_site(site: str, prefixes: Sequence[str]) -> int | None:
    """The layer whose modules a projection belongs to; None outside all of them."""
    path = site.rsplit(":", 1)[0]
    return next((at for at, prefix in enumerate(prefixes) if prefix and under(path, prefix)), None)


def error_curve(choice: LossyChoice, shares: Sequence[float]) -> tuple[float, ...]:
    """The estimated error of each share; every other one is between its neighbours."""
    found = [0.0 if share == 0 else math.nan for share in shares]
    known = [at for at, share in enumerate(shares) if share and (at % 2 == 0 or len(shares) < 4)]
    for at in known:
        found[at] = choice.error(shares[at])
    for at, error in enumerate(found):
        if math.isnan(error):
            found[at] = (found[at - 1] + found[at + 1]) / 2
    return tuple(found)


def mask_facts(
    dense: GraphModule, captured: Captured, masks: Mapping[str, EntryMask]
) -> dict[str, MaskFacts]:
    """What the reference is told of masks by site: names of the dense graph."""
    static = static_inputs(dense, captured)
    found: dict[str, MaskFacts] = {}
    for node, site in projections(dense.graph, static).items():
        if site not in masks:
            continue
        mask, region = masks[site], projection_region(node, static)
        region = gated(region, static) if mask.by_gate and region is not None else None
        gate = "" if region is None else str(region.gate)
        inputs = () if region is None else tuple(one.name for one in region.inputs)
        found[node.name] = MaskFacts(mask.threshold, mask.share, gate, inputs)
    return found


def pinned_lossy(
    planned: Planned, captured: Captured, config: Config, edits: Sequence[Edit]
) -> tuple[list[Named], dict[str, EntryMask]]:
    """The replacements that pinned edits name, and their masks by site; those the graph has."""
    context = region_context(planned, captured, config)
    passes = {item.name: item for item in all_passes() if isinstance(item, LossyRegionPass)}
    found: list[Named] = []
    masks: dict[str, EntryMask] = {}
    for name, policy in dict.fromkeys((edit.pass_name, edit.policy) for edit in edits):
        told = LossyContext(policy, planned.plan.seed)
        choices = {choice.site: choice for choice in passes[name].choices(context, told)[0]}
        for edit in edits:
            if (edit.pass_name, edit.policy) == (name, policy) and edit.site in choices:
                choice, share = choices[edit.site], float(edit.level)
                found.append((name, choice.replacement(share)))
                masks[edit.site] = choice.mask(share)
    return found, masks
