"""Levels of regions within a cost, against trying all of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpass.plan.allocation import Allocation, Curve, allocate, at_levels

SLACK = 1e-9


def every(curves: list[Curve]) -> list[Allocation]:
    """All plans that there are."""
    ranges = [range(len(curve.costs)) for curve in curves]
    return [at_levels(curves, levels) for levels in itertools.product(*ranges)]


def best(curves: list[Curve], goal: float) -> Allocation | None:
    """The plan of least error within a goal, by trying all."""
    within = [plan for plan in every(curves) if plan.cost <= goal + SLACK]
    return min(within, key=lambda plan: plan.error, default=None)


@st.composite
def tables(draw: st.DrawFn, most: int = 4) -> list[Curve]:
    """Costs fall and errors rise from level to level, in any way."""
    levels = draw(st.integers(2, 5))
    step = st.integers(1, 20).map(lambda n: n / 10)
    curves = []
    for _ in range(draw(st.integers(1, most))):
        costs = itertools.accumulate(draw(step) for _ in range(levels - 1))
        errors = itertools.accumulate(draw(step) for _ in range(levels - 1))
        curves.append(Curve((0.0, *(-c for c in costs)), (0.0, *errors)))
    return curves


def convex(scale: float, weight: float, levels: int = 40) -> Curve:
    """Squared errors that rise as the square of what is saved."""
    shares = [at / levels for at in range(levels + 1)]
    return Curve(tuple(-scale * s for s in shares), tuple(weight * s for s in shares))


@settings(deadline=None, max_examples=150)
@given(tables(), st.floats(0.05, 1.2))
def test_within_the_goal_wherever_a_plan_is(curves: list[Curve], part: float) -> None:
    goal = part * sum(curve.costs[-1] for curve in curves)
    found = allocate(curves, goal)
    assert found == Allocation(
        found.levels, found.cost, at_levels(curves, found.levels).error, found.notes
    )
    assert found.cost == pytest.approx(at_levels(curves, found.levels).cost)
    if best(curves, goal - SLACK) is None:
        assert found.notes
        return
    assert found.cost <= goal + SLACK and not found.notes
    for level in range(len(curves[0].costs)):  # never worse than one level for all
        uniform = at_levels(curves, [level] * len(curves))
        assert uniform.cost > goal or found.error <= uniform.error + SLACK


def test_one_level_for_all_counts_where_tables_are_not_convex() -> None:
    """No price gives it, and spending what a price leaves ends elsewhere."""
    curves = [
        Curve((0.0, -0.3, -0.8), (0.0, 1.6, 2.6)),
        Curve((0.0, -1.9, -3.3), (0.0, 0.4, 2.3)),
        Curve((0.0, -1.4, -2.6), (0.0, 0.9, 2.5)),
    ]
    assert allocate(curves, -3.55).levels == (1, 1, 1)


@settings(deadline=None, max_examples=60)
@given(tables(most=3), st.floats(0.1, 1.0))
def test_nothing_could_be_milder(curves: list[Curve], part: float) -> None:
    """What the goal leaves is spent: no region alone could take a milder level and still fit."""
    goal = part * sum(curve.costs[-1] for curve in curves)
    found = allocate(curves, goal)
    if found.notes:
        return
    for at, level in enumerate(found.levels):
        for milder in range(level):
            levels = (*found.levels[:at], milder, *found.levels[at + 1 :])
            assert at_levels(curves, levels).cost > goal


@pytest.mark.parametrize("part", [0.1, 0.3, 0.62, 0.9])
def test_optimal_where_tables_are_convex_and_fine(part: float) -> None:
    curves = [convex(1.0, 1.0), convex(2.0, 1.0), convex(1.0, 3.0)]
    goal = -4.0 * part
    expected = best(curves, goal)
    assert expected is not None
    assert allocate(curves, goal).error <= expected.error * 1.01


def test_costs_many_orders_apart() -> None:
    """Seconds and operations alike; a rounding error between equal costs is no price."""
    for unit in (1e-7, 1.0, 1e12):
        curves = [convex(unit, 1.0), Curve((0.0, -unit, -unit * (1 + 1e-15)), (0.0, 0.4, 0.4))]
        expected = best(curves, -1.5 * unit)
        assert expected is not None
        found = allocate(curves, -1.5 * unit)
        assert found.cost <= -1.5 * unit and found.error <= expected.error * 1.01


@settings(deadline=None, max_examples=80)
@given(tables(most=3), st.floats(0.1, 4.0))
def test_the_cheapest_within_an_error(curves: list[Curve], error: float) -> None:
    found = allocate(curves, None, error)
    assert found.error <= error and not found.notes
    exact = min(plan.cost for plan in every(curves) if plan.error <= error)
    assert found.cost >= exact - SLACK
    more = [
        at_levels(curves, [*found.levels[:at], level, *found.levels[at + 1 :]])
        for at, curve in enumerate(curves)
        for level in range(found.levels[at] + 1, len(curve.costs))
    ]
    assert not any(plan.error <= error - SLACK for plan in more)


def test_a_goal_of_none_on_fine_tables() -> None:
    curves = [convex(1.0, 1.0), convex(2.0, 1.0)]
    exact = min(plan.cost for plan in every(curves) if plan.error <= 0.5)
    assert allocate(curves, None, 0.5).cost <= exact * 0.99


def test_max_error_binds_beside_a_goal() -> None:
    curves = [convex(1.0, 1.0), convex(2.0, 1.0)]
    found = allocate(curves, -2.5, 0.3)
    assert found.error <= 0.3 and found.cost > -2.5
    assert [note.partition(":")[0] for note in found.notes] == ["max_error binds"]
    assert not allocate(curves, -2.5, 3.0).notes


def test_the_knee_where_no_levels_reach_the_goal() -> None:
    """Errors rise steeply behind the third level: nothing is gained by going there."""
    curve = Curve((0.0, -1.0, -2.0, -3.0, -3.1), (0.0, 0.01, 0.02, 0.03, 5.0))
    found = allocate([curve, curve], -100.0)
    assert found.levels == (3, 3)
    assert len(found.notes) == 1 and "this is where more stops paying" in found.notes[0]


def test_fixed_levels_stay() -> None:
    fixed = Curve((-1.0,), (0.5,))
    found = allocate([fixed, convex(1.0, 1.0)], -1.5)
    assert found.levels[0] == 0 and found.cost <= -1.5
    assert allocate([fixed], -3.0) == Allocation(
        (0,), -1.0, 0.5, ("the levels that are given do not reach the budget",)
    )
    assert allocate([Curve((1.0,), (0.5,))], 2.0) == Allocation((0,), 1.0, 0.5)


def test_nothing_to_choose() -> None:
    assert allocate([], -1.0) == Allocation((), 0, 0.0)
    assert allocate([], None, 0.1) == Allocation((), 0.0, 0.0)


def test_nothing_is_left_out_where_the_goal_is_met_or_nothing_is_saved() -> None:
    dearer = Curve((0.0, 1.0, 2.0), (0.0, 0.1, 0.2))
    assert allocate([convex(1.0, 1.0)], 0.0).levels == (0,)
    assert allocate([dearer], -1.0).levels == (0,)
    equal = Curve((0.0, 0.0, 0.0), (0.0, 0.1, 0.2))
    assert allocate([equal], -1.0).levels == (0,)


def test_a_free_level_is_taken() -> None:
    """Natural zeros: a cost is saved without an error."""
    free = Curve((0.0, -1.0, -2.0), (0.0, 0.0, 0.5))
    assert allocate([free, free], -2.0) == Allocation((1, 1), -2.0, 0.0)


def test_alike_each_time() -> None:
    curves = [convex(1.0, 1.0)] * 3
    assert len({allocate(curves, -1.2).levels for _ in range(3)}) == 1
