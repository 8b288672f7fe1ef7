"""How much of each region to leave out: least squared error within a cost (water-filling).

    minimise sum_i e_i(l_i)^2   with   base + sum_i c_i(l_i) <= goal

Levels are few and given as tables. For a price w of cost each region alone takes the level of least
e^2 + w c: along such plans the error that the next unit of cost buys is the same everywhere. The
price is found by bisection; what the goal still leaves is then spent where it lowers error most.
Errors add as squares, as those of token edits do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STEPS = 60

ROUNDING = 1e-12
"""Costs that are nearer to each other, of the largest, differ by rounding alone."""


@dataclass(frozen=True)
class Curve:
    """One region's levels: what each changes of the plan's cost, and its error. The first is none.

    A region whose level the user fixed has that one alone.
    """

    costs: tuple[float, ...]
    errors: tuple[float, ...]

    def best(self, price: float) -> int:
        """The level of least error^2 + price * cost; of equals the mildest."""
        totals = [e * e + price * c for e, c in zip(self.errors, self.costs, strict=True)]
        return totals.index(min(totals))


@dataclass(frozen=True)
class Allocation:
    """The level of every region, what they change of the cost together, and their error."""

    levels: tuple[int, ...]
    cost: float
    error: float
    notes: tuple[str, ...] = ()


def allocate(
    curves: Sequence[Curve], goal: float | None, max_error: float | None = None
) -> Allocation:
    """Levels that change the cost to `goal` (negative: saved) or below with least error.

    `goal` None: the cheapest within `max_error`. Where no levels reach the goal, those at the knee
    of the error curve, with a note; `max_error` binds beside the goal.
    """
    if goal is None:
        return cheapest(curves, max_error or 0.0)
    mildest = made(curves, 0.0)
    if mildest.cost <= goal or not curves:
        return mildest
    highest = dearest_price(curves)
    if made(curves, highest).cost > goal:
        found = knee(curves, highest)
        reached = "no levels of the regions reach the budget: this is where more stops paying"
        if all(len(curve.costs) == 1 for curve in curves):
            reached = "the levels that are given do not reach the budget"
        found = Allocation(found.levels, found.cost, found.error, (reached,))
    else:
        price = bisected(0.0, highest, lambda price: made(curves, price).cost <= goal)
        starts = [s for s in (made(curves, price), *uniform(curves)) if s.cost <= goal]
        plans = [spent(curves, start, goal) for start in starts]
        found = min(plans, key=lambda plan: (plan.error, plan.cost))
    if max_error is not None and found.error > max_error:
        within = cheapest(curves, max_error)
        note = f"max_error binds: the budget would need an estimated error of {found.error:.3g}"
        return Allocation(within.levels, within.cost, within.error, (note,))
    return found


def made(curves: Sequence[Curve], price: float) -> Allocation:
    """Every region's best level at a price."""
    return at_levels(curves, tuple(curve.best(price) for curve in curves))


def uniform(curves: Sequence[Curve]) -> list[Allocation]:
    """One level for all: where tables are not convex no price may give as good a plan."""
    most = max(len(curve.costs) for curve in curves)
    return [
        at_levels(curves, [min(level, len(curve.costs) - 1) for curve in curves])
        for level in range(1, most)
    ]


def at_levels(curves: Sequence[Curve], levels: Sequence[int]) -> Allocation:
    """What levels change, and their error."""
    pairs = list(zip(curves, levels, strict=True))
    error = math.sqrt(sum(curve.errors[level] ** 2 for curve, level in pairs))
    return Allocation(tuple(levels), sum(curve.costs[level] for curve, level in pairs), error)


def dearest_price(curves: Sequence[Curve]) -> float:
    """A price at which every region takes its cheapest level."""
    errors = sum(max(curve.errors) ** 2 for curve in curves)
    most = max((abs(cost) for curve in curves for cost in curve.costs), default=0.0)
    steps = [
        abs(first - second)
        for curve in curves
        for first in curve.costs
        for second in curve.costs
        if abs(first - second) > ROUNDING * most
    ]
    return 2 * errors / min(steps) if steps else 1.0


def bisected(low: float, high: float, fits: Callable[[float], bool]) -> float:
    """The least price that fits, to the last bits of a ratio (prices span many octaves)."""
    low = high * 2.0**-STEPS if low == 0.0 else low
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def spent(curves: Sequence[Curve], found: Allocation, goal: float) -> Allocation:
    """Milder levels, those first that lower the squared error most, while the plan still fits."""
    while True:
        steps = [
            (curve.errors[milder] ** 2 - curve.errors[level] ** 2, at, milder)
            for at, (curve, level) in enumerate(zip(curves, found.levels, strict=True))
            for milder in range(level)
        ]
        for change, at, milder in sorted(steps):
            levels = (*found.levels[:at], milder, *found.levels[at + 1 :])
            better = at_levels(curves, levels)
            if change < 0 and better.cost <= goal:
                found = better
                break
        else:
            return found


def cheapest(curves: Sequence[Curve], max_error: float) -> Allocation:
    """The cheapest levels within an error."""
    if not curves:
        return Allocation((), 0.0, 0.0)
    highest = dearest_price(curves)
    if made(curves, highest).error <= max_error:
        return made(curves, highest)
    price = bisected(0.0, highest, lambda price: made(curves, price).error > max_error)
    low = price * (1 - 2.0**-40)
    found = made(curves, low)
    found = found if found.error <= max_error else made(curves, 0.0)
    return saved(curves, found, max_error)


def saved(curves: Sequence[Curve], found: Allocation, max_error: float) -> Allocation:
    """Stronger levels, those first that save most, while the error still allows."""
    while True:
        steps = [
            (curve.costs[stronger] - curve.costs[level], at, stronger)
            for at, (curve, level) in enumerate(zip(curves, found.levels, strict=True))
            for stronger in range(level + 1, len(curve.costs))
        ]
        for change, at, stronger in sorted(steps):
            levels = (*found.levels[:at], stronger, *found.levels[at + 1 :])
            cheaper = at_levels(curves, levels)
            if change < 0 and cheaper.error <= max_error:
                found = cheaper
                break
        else:
            return found


def knee(curves: Sequence[Curve], highest: float) -> Allocation:
    """Of the plans along all prices, the one farthest below the line through the two ends."""
    prices = [0.0, *(highest * 2.0**-at for at in range(STEPS, -1, -1))]
    plans = [made(curves, price) for price in prices]
    first, last = plans[0], plans[-1]
    wide, tall = first.cost - last.cost, last.error - first.error
    if wide <= 0 or tall <= 0:
        return last

    def below_line(plan: Allocation) -> float:
        gone = (first.cost - plan.cost) / wide
        return gone - (plan.error - first.error) / tall

    return max(plans, key=below_line)
