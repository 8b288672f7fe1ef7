"""Running exactly the edits of a plan file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config
from tokenpass.cost.device import DeviceProfile
from tokenpass.cost.roofline import GraphCost
from tokenpass.edits import Edit, Plan
from tokenpass.errors import PlanMismatchError, nearest
from tokenpass.graph.view import View
from tokenpass.options import all_passes, lossy_passes
from tokenpass.passes.base import (
    Candidate,
    Level,
    LossyPass,
    LossyRegionPass,
    PassContext,
    RegionPass,
)
from tokenpass.pipeline.choices import pinned_lossy
from tokenpass.pipeline.facts import mask_facts
from tokenpass.pipeline.found import exact_edits
from tokenpass.pipeline.planned import Planned, carried_out
from tokenpass.pipeline.regions import (
    carry_out_regions,
    in_graph_order,
    region_context,
    with_regions,
)
from tokenpass.plan.levels import TOKENS, evaluator
from tokenpass.rewrite.replacing import Replacement
from tokenpass.rewrite.restoring import ReplayRefused
from tokenpass.rewrite.rewriter import Actions


def carry_out_pinned(
    view: View,
    captured: Captured,
    config: Config,
    pinned: Plan,
    blank: Plan,
    dense: GraphCost,
    profile: DeviceProfile,
    sizes: Mapping[sympy.Symbol, int],
) -> Planned:
    """Run exactly the edits of a plan file; raises `PlanMismatchError` where they do not fit."""
    if pinned.fingerprint and pinned.fingerprint != blank.fingerprint:
        raise PlanMismatchError(
            f"{config.origin}: the plan was made for graph {pinned.fingerprint}, this graph is "
            f"{blank.fingerprint} (another model, input shape or library version); plan anew with "
            "`tokenpass explain`, or name sites in a pass config instead"
        )
    lossy = {item.name: item for item in all_passes() if isinstance(item, LossyPass)}
    on_regions = RegionPass | LossyRegionPass
    of_regions = {item.name for item in all_passes() if isinstance(item, on_regions)}
    replaced = [e for e in pinned.edits if e.pass_name in of_regions]
    pinned = replace(pinned, edits=tuple(e for e in pinned.edits if e.pass_name not in of_regions))
    exact, edits, _ = exact_edits(view, len(pinned.edits))
    wanted = [e for e in pinned.edits if e.pass_name not in lossy]
    keep_exact = bool(wanted)
    lacking = [e for e in wanted if e.pass_name not in {e.pass_name for e in edits}]
    if lacking:
        raise PlanMismatchError(
            f"{config.origin}: {lacking[0].pass_name}: this graph has nothing that it could do "
            f"at {lacking[0].site!r}"
        )
    at: dict[Any, list[Any]] = {}
    for owner, edit in enumerate(e for e in pinned.edits if e.pass_name in lossy):
        candidate = pinned_candidate(view, config, edit, lossy[edit.pass_name])
        level = pinned_level(config, edit)
        action = lossy[edit.pass_name].action(candidate, level, owner, pinned.seed)
        at.setdefault(candidate.site.node, []).append(action)
    short = view.caches if config.shorter_cache else frozenset()
    actions = Actions(at, exact.read_cuts if keep_exact else (), short)
    plan = replace(blank, budget=pinned.budget, error=pinned.error, seed=pinned.seed)
    unedited = Planned(view, plan, None, dense, None, profile, sizes)
    made = unedited
    if not actions.empty:
        try:
            made = carried_out(unedited, captured, actions, pinned.edits, (), config)
        except ReplayRefused as refused:
            raise PlanMismatchError(f"{config.origin}: {refused.rejection}") from refused
    return with_pinned_regions(made, captured, config, replaced) if replaced else made


def with_pinned_regions(
    planned: Planned, captured: Captured, config: Config, edits: Sequence[Edit]
) -> Planned:
    """The regions that edits name replaced, whether it pays or not."""
    lossy = [edit for edit in edits if edit.pass_name in lossy_passes()]
    for edit in lossy:
        pinned_share(config, edit)
    chosen, masks, refused = pinned_lossy(planned, captured, config, lossy)
    twice = computed_twice([one for _, one in chosen])
    if twice is not None:
        raise PlanMismatchError(
            f"{config.origin}: {twice!r} is computed by two edits of the plan: leave one out"
        )
    ordered = in_graph_order(region_context(planned, captured, config), chosen)
    made = carry_out_regions(planned, captured, config, ordered)
    named = {(edit.pass_name, edit.site) for edit in edits if edit not in lossy}
    made = with_regions(made, captured, config, named)
    found = {(edit.pass_name, edit.site) for edit in made.plan.edits}
    lost = [edit for edit in edits if (edit.pass_name, edit.site) not in found]
    if lost:
        told = (*refused, *made.plan.rejections)
        why = [str(r) for r in told if r.where == lost[0].site]
        raise PlanMismatchError(
            f"{config.origin}: {lost[0].pass_name}: this graph has nothing that could be replaced "
            f"at {lost[0].site!r}" + (f": {why[0]}" if why else "")
        )
    return replace(made, masks=mask_facts(planned.view.module, captured, masks))


def computed_twice(lossy: Sequence[Replacement]) -> str | None:
    """A projection that two lossy replacements compute; None if there is none."""
    for one in lossy:
        for other in lossy:
            if other is not one and one.origin in {other.origin, *other.instead}:
                return one.site
    return None


def pinned_share(config: Config, edit: Edit) -> float:
    """The share that a pinned edit leaves out; raises `PlanMismatchError` where it is none."""
    try:
        share = float(edit.level)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise PlanMismatchError(
            f"{config.origin}: {edit.pass_name} at {edit.site!r}: the level must be a share of "
            f"entries above 0 and below 1, got {edit.level!r}"
        )
    return share


def pinned_level(config: Config, edit: Edit) -> Level:
    """The level of a pinned edit; raises `PlanMismatchError` where it is no finite number."""
    level = sympy.parse_expr(edit.level, local_dict={"tokens": TOKENS})
    if level.has(sympy.zoo, sympy.oo, -sympy.oo, sympy.nan):
        raise PlanMismatchError(
            f"{config.origin}: {edit.pass_name} at {edit.site!r}: the level {edit.level!r} "
            "divides by zero"
        )
    return evaluator(level)


def pinned_candidate(view: View, config: Config, edit: Edit, item: LossyPass) -> Candidate:
    """The candidate that a pinned edit names; raises `PlanMismatchError` with the nearest site."""
    context = PassContext(edit.policy, config.seed, config.shorter_cache, edit.span)
    found = item.candidates(view, context)
    for candidate in found.candidates:
        if candidate.site.name == edit.site:
            return candidate
    refused = [str(r) for r in found.rejections if r.where == edit.site]
    if refused:
        raise PlanMismatchError(f"{config.origin}: {edit.pass_name}: {refused[0]}")
    names = [candidate.site.name for candidate in found.candidates]
    raise PlanMismatchError(
        f"{config.origin}: {edit.pass_name}: this graph has no site {edit.site!r}"
        f"{nearest(edit.site, names)}; it has {', '.join(names[:4]) or 'none'}"
    )
