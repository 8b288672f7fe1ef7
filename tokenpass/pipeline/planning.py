"""Choosing edits: exact ones where they pay, then lossy ones down to the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config
from tokenpass.cost.device import find_profile
from tokenpass.cost.roofline import graph_cost
from tokenpass.edits import Edit, Plan
from tokenpass.graph.axis import Size
from tokenpass.graph.view import View, fingerprint
from tokenpass.options import all_passes
from tokenpass.passes.base import LossyPass
from tokenpass.pipeline.found import Found, choices_of, find_edits
from tokenpass.pipeline.pinned import carry_out_pinned
from tokenpass.pipeline.planned import (
    NO_CHANGE,
    Planned,
    carried_out,
    declined,
    device_of,
    op_costs,
    size_hints,
)
from tokenpass.pipeline.regions import with_regions
from tokenpass.pipeline.sparsity import Sparsifier
from tokenpass.plan.choice import levels_used
from tokenpass.plan.levels import constant, evaluator, level_expression
from tokenpass.plan.plan_file import pinned_plan
from tokenpass.plan.planner import Chosen, choose, keep_all
from tokenpass.plan.pricing import Prices, price
from tokenpass.ranks import has_collectives
from tokenpass.rewrite.restoring import ReplayRefused
from tokenpass.rewrite.rewriter import Actions

PAYS = 0.985
"""A lossy plan is kept only if it is predicted to cost at most this share of the exact one."""


CORRECTIONS = 3
"""Graphs made at most while the symbolic prices prove too kind."""


def make_plan(view: View, captured: Captured, config: Config) -> Planned:
    """Choose edits under the config and carry them out; raises what a pinned plan contradicts."""
    # what one rank measured, the others do not know: all must find the same plan
    shared = has_collectives(view.module.graph)
    profile = find_profile(device_of(captured), config.device_profile, measured=not shared)
    dense = graph_cost(view.module, op_costs(device_of(captured).type, profile))
    sizes = size_hints(captured)
    dense_cost = dense.evaluate(sizes, profile, config.objective)
    mark = fingerprint(view.module)
    blank = Plan(
        mark, (), config.budget or 1.0, config.objective, dense_cost, dense_cost, seed=config.seed
    )
    pinned = pinned_plan(config)
    if pinned is not None:
        return carry_out_pinned(view, captured, config, pinned, blank, dense, profile, sizes)
    found = find_edits(view, config)
    unedited = Planned(
        view, replace(blank, rejections=found.rejections), None, dense, None, profile, sizes
    )
    planner = Planner(view, captured, config, found, unedited)
    return least_loss(planner, captured, config)


def least_loss(planner: Planner, captured: Captured, config: Config) -> Planned:
    """The plan of least error that meets the budget, by token edits, smaller products, or both.

    Where both could act, token edits are planned for the whole budget, for none, and half way (of
    its logarithm): the products meet what is then left.
    """
    budget = config.budget
    goals = [budget]
    if planner.found.candidates and budget is not None and budget < 1.0:
        goals += [budget**0.5, 1.0]
    best: Planned | None = None
    for goal in goals:
        aimed = replace(planner, config=config.model_copy(update={"budget": goal}))
        tokens = aimed.plan()
        exact = with_regions(tokens, captured, config)
        sparsifier = Sparsifier(tokens, exact, captured, config)
        made = sparsifier.plan()
        if best is None or better(made, best, budget):
            best = made
        if not sparsifier.able:  # nothing to share the budget with
            break
    return best or planner.unedited


def better(made: Planned, best: Planned, budget: float | None) -> bool:
    """Whether a plan meets the budget where another does not, or with less error."""
    goal = 1.0 if budget is None else budget

    def rank(planned: Planned) -> tuple[float, float]:
        return max(planned.plan.share - goal * 1.01, 0.0), planned.plan.error

    return rank(made) < rank(best)


@dataclass(frozen=True, eq=False)
class Planner:
    """Plans one graph: exact edits where they pay, then lossy ones down to the budget."""

    view: View
    captured: Captured
    config: Config
    found: Found
    unedited: Planned

    def plan(self) -> Planned:
        """The plan that meets the budget with least error, made real."""
        limited = self.config.max_error is not None or (self.config.budget or 1.0) < 1.0
        limited = limited or any(fixed is not None for fixed in self.found.fixed)
        try:
            if not (limited and self.found.candidates):
                return self.exact_only()
            return self.lossy() or declined(self.exact_only(), self.config.budget)
        except ReplayRefused as refused:
            return self.without(refused).plan()

    def without(self, refused: ReplayRefused) -> Planner:
        """The same, without what cannot be carried out: a pass on a stream, or the exact edits.

        A site with too few tokens is left out alone.
        """
        found, at = self.found, refused.owner
        alone = refused.rejection.code == "too_few_tokens"
        rejections = (*found.rejections, refused.rejection)
        if at is not None and at < len(found.candidates):
            bad = found.candidates[at]
            kept = [
                (c, f)
                for c, f in zip(found.candidates, found.fixed, strict=True)
                if c is not bad
                and (alone or c.pass_name != bad.pass_name or c.stream is not bad.stream)
            ]
            less = replace(
                found, candidates=tuple(c for c, _ in kept), fixed=tuple(f for _, f in kept)
            )
        elif at is not None and not found.exact.empty:
            less = replace(found, exact=Actions(), exact_edits=())
        elif found.candidates or not found.exact.empty:
            less = replace(found, candidates=(), fixed=(), exact=Actions(), exact_edits=())
        else:
            raise refused
        unedited = replace(self.unedited, plan=replace(self.unedited.plan, rejections=rejections))
        return replace(self, found=replace(less, rejections=rejections), unedited=unedited)

    def exact_only(self) -> Planned:
        """Exact edits alone, where they are predicted to pay."""
        if self.found.exact.empty:
            return self.unedited
        edited = self.carry_out(self.found.exact, self.found.exact_edits, ())
        if edited.plan.planned_cost >= edited.plan.dense_cost * (1 - NO_CHANGE):
            return self.unedited
        return edited

    def lossy(self) -> Planned | None:
        """Lossy edits on top of exact ones, or None where they are not predicted to pay.

        The graph that a plan gives decides whether it meets the budget, so the planner aims a
        little lower where the symbolic prices were too kind.
        """
        dense, budget = self.unedited.plan.dense_cost, self.config.budget
        prices = self.prices(not self.found.exact.empty)
        floor = prices(keep_all(prices.choices))
        exact = not self.found.exact.empty and floor < dense
        if not exact and not self.found.exact.empty:
            prices = self.prices(False)
            floor = prices(keep_all(prices.choices))
        # levels that the user fixed are carried out whether they pay or not
        asked = any(fixed is not None for fixed in self.found.fixed)
        bound = float("inf") if asked else floor * PAYS
        aim = None if budget is None else budget * dense
        best: Planned | None = None
        for _ in range(CORRECTIONS):
            chosen = choose(prices.choices, prices, aim, self.config.max_error)
            if chosen.cost >= bound:
                break
            made = self.make(prices, chosen, exact)
            if best is None or made.plan.planned_cost < best.plan.planned_cost:
                best = made
            over = 0.0 if aim is None or budget is None else made.plan.share / budget
            if over <= 1.0 or chosen.notes:
                break
            aim = aim / (over * 1.005) if aim is not None else None
        return best if best is not None and best.plan.planned_cost < bound else None

    def prices(self, exact: bool) -> Prices:
        """Costs of all plans over the candidates."""
        return price(
            self.view,
            self.captured.fakes,
            choices_of(self.found, self.view),
            lambda levels: self.actions([constant(level) for level in levels], exact),
            op_costs(device_of(self.captured).type, self.unedited.profile),
            self.unedited.profile,
            self.config.objective,
        )

    def actions(self, levels: Sequence[Callable[[Size], Size] | None], exact: bool) -> Actions:
        """The replay's actions for one level at each candidate (None: left out)."""
        at: dict[Any, list[Any]] = {}
        by_name = {item.name: item for item in all_passes()}
        for owner, (candidate, level) in enumerate(zip(self.found.candidates, levels, strict=True)):
            item = by_name[candidate.pass_name]
            if level is not None and isinstance(item, LossyPass):
                action = item.action(candidate, level, owner, self.config.seed)
                at.setdefault(candidate.site.node, []).append(action)
        cuts = self.found.exact.read_cuts if exact else ()
        short = self.view.caches if self.config.shorter_cache else frozenset()
        return Actions(at, cuts, short)

    def make(self, prices: Prices, chosen: Chosen, keep_exact: bool) -> Planned:
        """The graph of chosen levels."""
        used = levels_used(prices.choices, chosen.levels)
        expressions = [
            None
            if count is None
            else level_expression(
                count, candidate.stream.axis.size, candidate.never_below, bool(candidate.span)
            )
            for candidate, count in zip(self.found.candidates, used, strict=True)
        ]
        edits = tuple(
            Edit(c.pass_name, c.site.name, c.policy, str(expression), c.span)
            for c, expression in zip(self.found.candidates, expressions, strict=True)
            if expression is not None
        )
        actions = self.actions(
            [None if e is None else evaluator(e) for e in expressions], keep_exact
        )
        exact_edits = self.found.exact_edits if keep_exact else ()
        made = self.carry_out(actions, (*edits, *exact_edits), chosen.notes)
        return replace(made, plan=replace(made.plan, error=chosen.error))

    def carry_out(
        self, actions: Actions, edits: tuple[Edit, ...], notes: tuple[str, ...]
    ) -> Planned:
        """Rewrite, and price the graph that comes out."""
        return carried_out(self.unedited, self.captured, actions, edits, notes, self.config)
