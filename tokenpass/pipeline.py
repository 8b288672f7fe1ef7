"""From facts to a rewritten graph: candidates, prices, plan, rewrite, and the report."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch.fx import GraphModule

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config, PassSpec
from tokenpass.cost.device import DeviceProfile, find_profile
from tokenpass.cost.roofline import GraphCost, graph_cost
from tokenpass.edits import Edit, Plan, Rejection
from tokenpass.errors import PlanMismatchError, nearest
from tokenpass.graph.axis import Size
from tokenpass.graph.layers import costs_by_layer, layer_prefixes
from tokenpass.graph.view import View, fingerprint
from tokenpass.ops import OPERATORS
from tokenpass.options import all_passes
from tokenpass.passes.base import Candidate, ExactPass, LossyPass, PassContext
from tokenpass.plan.choice import Choice
from tokenpass.plan.plan_file import pinned_plan, plan_to_yaml
from tokenpass.plan.planner import Chosen, choose
from tokenpass.plan.pricing import Prices, price
from tokenpass.report import GraphReport, LayerRow
from tokenpass.rewrite.replay import ReplayRefused
from tokenpass.rewrite.rewriter import Actions, hinted, rewrite

PAYS = 0.985
"""A lossy plan is kept only if it is predicted to cost at most this share of the exact one."""

CORRECTIONS = 3

MOST_SITES = 6
NO_CHANGE = 1e-9


@dataclass(frozen=True, eq=False)
class Found:
    """What could be done to a graph: lossy candidates in graph order, and the exact edits."""

    candidates: tuple[Candidate, ...]
    fixed: tuple[float | None, ...]
    exact: Actions
    exact_edits: tuple[Edit, ...]
    rejections: tuple[Rejection, ...]


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, the graph that it gives (None: nothing is edited), and what both cost."""

    view: View
    plan: Plan
    module: GraphModule | None
    dense: GraphCost
    edited: GraphCost | None
    profile: DeviceProfile
    sizes: Mapping[sympy.Symbol, int]

    @property
    def exact(self) -> bool:
        """Whether no edit can lose anything."""
        exact = {item.name for item in all_passes() if isinstance(item, ExactPass)}
        return all(edit.pass_name in exact for edit in self.plan.edits)

    def report(self, seconds: float) -> GraphReport:
        """The record of this graph."""
        rows, outside = layer_rows(self)
        return GraphReport(
            "edited" if self.module is not None else "dense",
            self.plan,
            self.profile.name,
            rows,
            *outside,
            unknown=self.dense.unknown,
            seconds=seconds,
            plan_yaml=plan_to_yaml(self.plan),
            exact=self.exact,
        )


def op_costs() -> dict[Any, Callable[..., Any]]:
    """Cost rules of our own operators, as the cost model calls them (result first)."""

    def rule(cost: Callable[..., Any]) -> Callable[..., Any]:
        return lambda out, *args, **kwargs: cost(*args, **kwargs)

    return {operator.overload: rule(operator.cost) for operator in OPERATORS}


def size_hints(captured: Captured) -> dict[sympy.Symbol, int]:
    """The example call's value of every dynamic size."""
    found: dict[sympy.Symbol, int] = {}
    sizes: list[Any] = list(captured.fakes)
    for fake in captured.fakes:
        if isinstance(fake, torch.Tensor):
            sizes += [*fake.shape, *fake.stride()]
    for size in sizes:
        if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
            found[size.node.expr] = size.node.hint
    return found


def make_plan(view: View, captured: Captured, config: Config) -> Planned:
    """Choose edits under the config and carry them out; raises what a pinned plan contradicts."""
    profile = find_profile(device_of(captured), config.device_profile)
    dense = graph_cost(view.module, op_costs())
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
    return Planner(view, captured, config, found, unedited).plan()


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
        exact = self.exact_only()
        lossy = self.found.candidates and (
            self.config.max_error is not None or (self.config.budget or 1.0) < 1.0
        )
        if not lossy:
            return exact
        try:
            return self.lossy(exact)
        except ReplayRefused as refused:
            return self.without(refused).plan()

    def without(self, refused: ReplayRefused) -> Planner:
        """The same, without the candidates of the pass and stream that cannot be carried out."""
        at = refused.owner
        if at is None or at >= len(self.found.candidates):
            raise refused
        bad = self.found.candidates[at]
        kept = [
            (c, f)
            for c, f in zip(self.found.candidates, self.found.fixed, strict=True)
            if c.pass_name != bad.pass_name or c.stream is not bad.stream
        ]
        rejections = (*self.found.rejections, refused.rejection)
        found = replace(
            self.found,
            candidates=tuple(c for c, _ in kept),
            fixed=tuple(f for _, f in kept),
            rejections=rejections,
        )
        unedited = replace(self.unedited, plan=replace(self.unedited.plan, rejections=rejections))
        return replace(self, found=found, unedited=unedited)

    def exact_only(self) -> Planned:
        """Exact edits alone, where they are predicted to pay."""
        if self.found.exact.empty:
            return self.unedited
        edited = self.carry_out(self.found.exact, self.found.exact_edits, ())
        if edited.plan.planned_cost >= edited.plan.dense_cost * (1 - NO_CHANGE):
            return self.unedited
        return edited

    def lossy(self, exact: Planned) -> Planned:
        """Lossy edits on top; the graph that a plan gives decides whether it meets the budget."""
        prices = self.prices(exact.module is not None)
        budget, dense = self.config.budget, exact.plan.dense_cost
        aim = None if budget is None else budget * dense
        best: Planned | None = None
        for _ in range(CORRECTIONS):
            chosen = choose(prices.choices, prices, aim, self.config.max_error)
            made = self.make(chosen, exact)
            if best is None or made.plan.planned_cost < best.plan.planned_cost:
                best = made
            if aim is None or budget is None or chosen.notes:
                break
            over = made.plan.planned_cost / (budget * dense)
            if over <= 1.0:
                best = made
                break
            aim /= over * 1.005
        return best if best is not None and worth_it(best, exact, prices) else declined(exact)

    def prices(self, exact: bool) -> Prices:
        """Costs of all plans over the candidates."""
        return price(
            self.view,
            self.captured.fakes,
            choices_of(self.found, self.view),
            lambda levels: self.actions([constant(level) for level in levels], exact),
            op_costs(),
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

    def make(self, chosen: Chosen, exact: Planned) -> Planned:
        """The graph of chosen levels."""
        used = levels_used(self.found.candidates, chosen.levels)
        expressions = [
            None if count is None else level_expression(count, candidate)
            for candidate, count in zip(self.found.candidates, used, strict=True)
        ]
        edits = tuple(
            Edit(c.pass_name, c.site.name, c.policy, str(expression))
            for c, expression in zip(self.found.candidates, expressions, strict=True)
            if expression is not None
        )
        keep_exact = exact.module is not None
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


def carried_out(
    unedited: Planned,
    captured: Captured,
    actions: Actions,
    edits: tuple[Edit, ...],
    notes: tuple[str, ...],
    config: Config,
) -> Planned:
    """The graph that actions give, priced as itself."""
    module = rewrite(unedited.view, actions, captured.fakes, captured.mode)
    edited = graph_cost(module, op_costs())
    cost = edited.evaluate(unedited.sizes, unedited.profile, config.objective)
    plan = replace(unedited.plan, edits=edits, planned_cost=cost, notes=notes)
    return replace(unedited, plan=plan, module=module, edited=edited)


def worth_it(best: Planned, exact: Planned, prices: Prices) -> bool:
    """Whether lossy edits pay for what they lose (flops always do: nothing is measured)."""
    return best.plan.planned_cost < exact.plan.planned_cost * PAYS


def declined(exact: Planned) -> Planned:
    """The exact plan, saying that nothing lossy would have paid."""
    note = "no lossy plan is predicted to pay on this device: what edits cost outweighs their gain"
    return replace(exact, plan=replace(exact.plan, notes=(*exact.plan.notes, note)))


def device_of(captured: Captured) -> torch.device:
    """The device that the graph runs on: that of its first tensor that is not on the CPU."""
    devices = [f.device for f in captured.fakes if isinstance(f, torch.Tensor)]
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


def find_edits(view: View, config: Config) -> Found:
    """Candidates of the passes that the config allows, in graph order, and the exact edits."""
    specs = config.passes
    lossy = [item for item in all_passes() if isinstance(item, LossyPass)]
    named = [(item, PassSpec(name=item.name)) for item in lossy]
    if specs is not None:
        by_name = {item.name: item for item in lossy}
        named = [(by_name[spec.name], spec) for spec in specs]
    candidates: list[tuple[Candidate, float | None]] = []
    rejections = list(view.rejections)
    taken: set[int] = set()
    for item, spec in named:
        context = PassContext(spec.policy, config.seed, config.shorter_cache)
        found = item.candidates(view, context)
        rejections += found.rejections
        inside = [c for c in found.candidates if spec.covers(c.site.layer, c.site.name)]
        if specs is None:
            inside = [c for c in inside if id(c.stream) not in taken]
            taken |= {id(c.stream) for c in inside}
        keep = getattr(spec.options, "keep_ratio", "auto")
        if keep == "auto":
            inside = thinned(inside)
        candidates += [(c, None if keep == "auto" else keep) for c in inside]
    exact, edits, refused = exact_edits(view, len(candidates))
    order = {node: at for at, node in enumerate(view.module.graph.nodes)}
    candidates.sort(key=lambda pair: order[pair[0].site.node])
    return Found(
        tuple(c for c, _ in candidates),
        tuple(f for _, f in candidates),
        exact,
        edits,
        (*rejections, *refused, *view_summary(view)),
    )


def thinned(candidates: Sequence[Candidate]) -> list[Candidate]:
    """At most MOST_SITES of each stream, evenly spread from the first: what the planner weighs.

    Pricing takes time for every site, and plans of many stages compile slowly in any case.
    """
    kept: list[Candidate] = []
    for stream in dict.fromkeys(candidate.stream for candidate in candidates):
        mine = [candidate for candidate in candidates if candidate.stream is stream]
        count = min(len(mine), MOST_SITES)
        kept += [mine[at * len(mine) // count] for at in range(count)]
    return kept


def view_summary(view: View) -> tuple[Rejection, ...]:
    """Streams whose values are all barriers get a reason of their own."""
    return tuple(
        Rejection("no_site", stream.birth.name, "no value of this stream can be shortened")
        for stream in view.streams
        if not stream.sites
    )


def exact_edits(view: View, owners: int) -> tuple[Actions, tuple[Edit, ...], tuple[Rejection, ...]]:
    """The exact passes' cuts, as actions and as edits."""
    cuts, edits, rejections = [], [], []
    for item in all_passes():
        if not isinstance(item, ExactPass):
            continue
        found, why = item.read_cuts(view, owners + len(cuts))
        rejections += why.rejections
        for cut in found:
            last = cut.stream.regions[-1]
            prefix = layer_prefixes(cut.stream.regions)[-1] or last.node.name
            positions = ",".join(str(p) for p in cut.positions)
            edits.append(Edit(item.name, f"{prefix}:queries", positions, str(len(cut.positions))))
        cuts += found
    return Actions({}, tuple(cuts)), tuple(edits), tuple(rejections)


def choices_of(found: Found, view: View) -> tuple[Choice, ...]:
    """Candidates as the planner's numbers."""
    weights = {i.name: i.error_weight for i in all_passes() if isinstance(i, LossyPass)}
    streams = {id(stream): at for at, stream in enumerate(view.streams)}
    return tuple(
        Choice(
            c.pass_name,
            c.site.name,
            c.policy,
            streams[id(c.stream)],
            int(hinted(c.stream.axis.size)),
            c.depth,
            c.lowest,
            c.never_below,
            weights[c.pass_name].get(c.policy, 1.0),
            fixed,
            c.spared,
        )
        for c, fixed in zip(found.candidates, found.fixed, strict=True)
    )


def levels_used(candidates: Sequence[Candidate], levels: Sequence[int]) -> list[int | None]:
    """The count behind each candidate that removes something, None for the others."""
    incoming: dict[int, int] = {}
    used: list[int | None] = []
    for candidate, level in zip(candidates, levels, strict=True):
        key = id(candidate.stream)
        before = incoming.get(key, int(hinted(candidate.stream.axis.size)))
        used.append(level if level < before else None)
        incoming[key] = level
    return used


TOKENS = sympy.Symbol("tokens", integer=True, positive=True)


def level_expression(count: int, candidate: Candidate) -> sympy.Expr:
    """A count as an expression of the stream's length: constant only where that is constant."""
    size = candidate.stream.axis.size
    if isinstance(size, int):
        return sympy.Integer(count)
    share = sympy.Rational(count, int(size.node.hint))
    least = candidate.never_below + 1
    return sympy.Max(sympy.floor(TOKENS * share.p / share.q), least)


def evaluator(expression: sympy.Expr) -> Callable[[Size], Size]:
    """The level for a stream's length, which may be symbolic."""
    if expression.is_Integer:
        return constant(int(expression))
    if not expression.free_symbols:
        return constant(math.floor(expression))
    modules = {
        "floor_div": operator.floordiv,
        "Max": torch.sym_max,
        "Min": torch.sym_min,
        "Mod": operator.mod,
        "ceiling": math.ceil,
    }
    return sympy.lambdify([TOKENS], as_floor_division(expression), [modules, "math"])


def as_floor_division(expression: sympy.Expr) -> sympy.Expr:
    """`floor(a * tokens / b)` as a call on integers, which keeps sizes symbolic and exact."""
    divide = sympy.Function("floor_div")

    def rewrite_floor(argument: sympy.Expr) -> sympy.Expr:
        top, bottom = sympy.fraction(sympy.together(argument))
        return divide(top, bottom)

    return expression.replace(sympy.floor, rewrite_floor)


def constant(level: Size) -> Callable[[Size], Size]:
    """A level that does not depend on the length."""
    return lambda tokens: level


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
            f"{blank.fingerprint} (another model, input shape or library version); plan anew, or "
            "remove the fingerprint to run the edits whose sites this graph has"
        )
    lossy = {item.name: item for item in all_passes() if isinstance(item, LossyPass)}
    exact, edits, _ = exact_edits(view, len(pinned.edits))
    wanted = [e for e in pinned.edits if e.pass_name not in lossy]
    keep_exact = bool(wanted) and {e.pass_name for e in wanted} <= {e.pass_name for e in edits}
    at: dict[Any, list[Any]] = {}
    for owner, edit in enumerate(e for e in pinned.edits if e.pass_name in lossy):
        candidate = pinned_candidate(view, config, edit, lossy[edit.pass_name])
        level = evaluator(sympy.sympify(edit.level, locals={"tokens": TOKENS}))
        action = lossy[edit.pass_name].action(candidate, level, owner, pinned.seed)
        at.setdefault(candidate.site.node, []).append(action)
    short = view.caches if config.shorter_cache else frozenset()
    actions = Actions(at, exact.read_cuts if keep_exact else (), short)
    plan = replace(blank, budget=pinned.budget, error=pinned.error, seed=pinned.seed)
    unedited = Planned(view, plan, None, dense, None, profile, sizes)
    if actions.empty:
        return unedited
    try:
        return carried_out(unedited, captured, actions, pinned.edits, (), config)
    except ReplayRefused as refused:
        raise PlanMismatchError(f"{config.origin}: {refused.rejection}") from refused


def pinned_candidate(view: View, config: Config, edit: Edit, item: LossyPass) -> Candidate:
    """The candidate that a pinned edit names; raises `PlanMismatchError` with the nearest site."""
    found = item.candidates(view, PassContext(edit.policy, config.seed, config.shorter_cache))
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


def layer_rows(planned: Planned) -> tuple[tuple[LayerRow, ...], tuple[float, float]]:
    """Each attention layer's tokens and costs, and the costs outside all layers."""
    regions = planned.view.regions
    prefixes = layer_prefixes(regions)
    profile, sizes = planned.profile, dict(planned.sizes)
    if planned.plan.objective == "flops":
        dense_costs = flops_by_node(planned.dense, sizes, profile)
        edited_costs = flops_by_node(planned.edited or planned.dense, sizes, profile)
    else:
        dense_costs = planned.dense.per_node(sizes, profile)
        edited_costs = (planned.edited or planned.dense).per_node(sizes, profile)
    dense, dense_outside = costs_by_layer(planned.view.module.graph, dense_costs, prefixes)
    graph = (planned.module or planned.view.module).graph
    edited, outside = costs_by_layer(graph, edited_costs, prefixes)
    counts = token_counts(planned)
    rows = tuple(
        LayerRow(
            region.layer,
            prefixes[at] or region.node.name,
            counts[at][0],
            counts[at][1],
            dense[at],
            edited[at],
            tuple(e for e in planned.plan.edits if prefixes[at] and under(e.site, prefixes[at])),
        )
        for at, region in enumerate(regions)
    )
    return rows, (dense_outside, outside)


def flops_by_node(
    cost: GraphCost, sizes: dict[sympy.Symbol, int], profile: DeviceProfile
) -> dict[str, float]:
    """Arithmetic of each node."""
    totals: dict[str, float] = {}
    for group in cost.per_group(sizes, profile):
        totals[group.names[0]] = totals.get(group.names[0], 0.0) + group.flops
    return totals


def under(site: str, prefix: str) -> bool:
    """Whether a site's module path lies in a layer's."""
    path = site.split(":")[0]
    return path == prefix or path.startswith(prefix + ".")


def token_counts(planned: Planned) -> list[tuple[str, str]]:
    """Tokens coming into and leaving every layer, as text."""
    sites = {site.name: site for site in planned.view.sites}
    now: dict[int, str] = {}
    behind: dict[int, str] = {}
    for edit in planned.plan.edits:
        if edit.site in sites:
            behind[id(sites[edit.site].region)] = edit.level
        elif edit.pass_name == "dead_tokens":
            for region in planned.view.regions:
                if under(edit.site, layer_prefixes(planned.view.regions)[region.layer]):
                    behind[id(region)] = edit.level
    counts = []
    for region in planned.view.regions:
        axis = id(region.query_axis)
        size = region.query_axis.size
        incoming = now.get(axis, str(size) if isinstance(size, int) else str(TOKENS))
        outgoing = behind.get(id(region), incoming)
        now[axis] = outgoing
        counts.append((incoming, outgoing))
    return counts
