"""Choosing levels: against costs that can be computed by hand."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tokenpass.plan.choice import Choice
from tokenpass.plan.planner import (
    Chosen,
    choose,
    friendly,
    keep_all,
    knee_distance,
    lead,
    levels_for,
    spread,
)
from tokenpass.plan.prior import CROWDED, LATER, REST, edit_error, plan_error

TOKENS = 256


def stack(layers: int, lowest: float = 0.5, tokens: int = TOKENS) -> tuple[Choice, ...]:
    """One choice in each layer of a stream."""
    return tuple(
        Choice("merge", f"layer.{at}", "keys", 0, tokens, at / layers, lowest, 1, 1.0)
        for at in range(layers)
    )


def linear(layers: int) -> Linear:
    return Linear(layers)


class Linear:
    """A layer costs as much as the tokens behind its choice; one more layer comes before all."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.calls = 0

    def __call__(self, levels: Sequence[int]) -> float:
        self.calls += 1
        return TOKENS + sum(levels)

    @property
    def dense(self) -> float:
        return TOKENS * (self.layers + 1)


def test_one_site_keeps_exactly_what_the_budget_allows() -> None:
    # (256 + kept) <= 0.8 * 512 = 409.6, so 153 tokens may stay: 144 in steps of 16
    cost = linear(1)
    chosen = choose(stack(1), cost, 0.8 * cost.dense)
    assert chosen.levels == (144,)
    assert chosen.cost == 256 + 144
    assert chosen.error == pytest.approx((TOKENS - 144) / TOKENS)


@pytest.mark.parametrize("budget", [0.9, 0.75, 0.6])
@pytest.mark.parametrize("layers", [2, 5, 12])
def test_the_budget_is_met_and_counts_fall(layers: int, budget: float) -> None:
    cost = linear(layers)
    chosen = choose(stack(layers), cost, budget * cost.dense)
    assert chosen.notes == ()
    assert cost(chosen.levels) == chosen.cost <= budget * cost.dense
    assert list(chosen.levels) == sorted(chosen.levels, reverse=True)
    assert chosen.error == plan_error(stack(layers), chosen.levels)


def test_nothing_is_removed_where_nothing_has_to_be() -> None:
    cost = linear(4)
    chosen = choose(stack(4), cost, cost.dense)
    assert chosen.levels == keep_all(stack(4)) == (TOKENS,) * 4
    assert chosen.error == 0.0


def test_a_schedule_of_several_stages_beats_one_abrupt_cut() -> None:
    cost = linear(12)
    chosen = choose(stack(12), cost, 0.5 * cost.dense)
    stages = len({*chosen.levels, TOKENS}) - 1
    abrupt = [
        levels
        for at in range(12)
        for kept in range(128, TOKENS)
        if cost(levels := (TOKENS,) * at + (kept,) * (12 - at)) <= 0.5 * cost.dense
    ]
    assert 2 <= stages <= 4
    assert not abrupt or chosen.error < min(plan_error(stack(12), levels) for levels in abrupt)


def test_a_lower_budget_never_promises_less_error() -> None:
    cost = linear(8)
    errors = [choose(stack(8), cost, share * cost.dense).error for share in (0.9, 0.7, 0.5, 0.4)]
    assert errors == sorted(errors)


def test_the_same_input_gives_the_same_plan() -> None:
    cost = linear(12)
    assert len({choose(stack(12), cost, 0.5 * cost.dense) for _ in range(3)}) == 1


def test_an_unreachable_budget_gives_the_knee_and_says_by_how_much() -> None:
    cost = linear(2)
    # one choice, at least half of the tokens stay: 256 + 2 * 128 of 768 is the least there is
    choices = stack(1)
    goal = 0.2 * cost.dense
    chosen = choose(choices, cost, goal)
    least = cost((128,))
    assert f"{least / goal:.2f} times" in chosen.notes[0]
    # error and cost are both linear in one level: the knee of a straight line is its cheap end
    assert chosen.levels == (128,)


def test_the_knee_lies_farthest_below_the_line_through_the_ends() -> None:
    first, last = Chosen((), 10.0, 0.0), Chosen((), 2.0, 8.0)
    on_line, below = Chosen((), 6.0, 4.0), Chosen((), 6.0, 1.0)
    assert knee_distance(first, first, last) == knee_distance(last, first, last) == 0.0
    assert knee_distance(on_line, first, last) == 0.0
    assert knee_distance(below, first, last) == pytest.approx(0.5 - 1 / 8)


def test_max_error_alone_gives_the_cheapest_plan_within_it() -> None:
    cost = linear(6)
    chosen = choose(stack(6), cost, None, max_error=0.3)
    assert chosen.error <= 0.3
    tighter = choose(stack(6), cost, None, max_error=0.1)
    assert tighter.error <= 0.1
    assert chosen.cost < tighter.cost < cost.dense


def test_max_error_binds_before_the_budget_and_says_so() -> None:
    cost = linear(6)
    free = choose(stack(6), cost, 0.5 * cost.dense)
    bound = choose(stack(6), cost, 0.5 * cost.dense, max_error=free.error / 2)
    assert bound.error <= free.error / 2
    assert bound.cost > 0.5 * cost.dense
    assert "max_error binds" in bound.notes[-1]


def test_a_fixed_share_is_kept_whatever_the_budget() -> None:
    choices = (replace(stack(2)[0], fixed=0.75), stack(2)[1])
    chosen = choose(choices, linear(2), 0.7 * linear(2).dense)
    assert chosen.levels[0] == 192


def test_streams_have_counts_of_their_own() -> None:
    image = replace(stack(1)[0], stream=1, tokens=64)
    levels = levels_for((*stack(1), image), (0, 1), lambda choice, incoming, stage: incoming / 2)
    assert levels == (128, 32)


def test_spared_tokens_stay_beside_the_lowest_share_and_count_once() -> None:
    (site,) = stack(1)
    spared = replace(site, spared=1, never_below=1)
    (level,) = levels_for((spared,), (0,), lambda choice, incoming, stage: 0)
    assert level == 128 + 1


@pytest.mark.parametrize(
    ("count", "tokens", "kept"), [(153.9, 256, 144), (100, 1024, 96), (5, 16, 5), (3, 1024, 3)]
)
def test_counts_are_friendly_to_vectors(count: float, tokens: int, kept: int) -> None:
    assert friendly(count, tokens) == kept


def test_places_of_stages() -> None:
    assert spread(range(12), 4) == (0, 3, 6, 9)
    assert lead(range(12), 3) == (0, 1, 2)


def test_the_prior_by_hand() -> None:
    first, second = stack(2)
    half = 0.5
    assert edit_error(first, 256, 128, None) == half
    late = half ** (1 / (1 - LATER * 0.5))
    crowded = 1 + CROWDED * math.exp(-0.5 / REST)
    assert edit_error(second, 128, 64, 0.5) == pytest.approx(late * crowded)
    assert plan_error((first, second), (128, 64)) == pytest.approx(math.hypot(half, late * crowded))
    assert plan_error((first, second), (256, 256)) == 0.0


def test_eighty_layers_plan_below_a_second() -> None:
    cost = linear(80)
    started = time.process_time()
    choose(stack(80), cost, 0.5 * cost.dense)
    assert time.process_time() - started < 1.0
