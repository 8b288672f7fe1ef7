"""Choosing levels: least prior error with predicted cost <= budget x dense.

The planner tries schedules: how many stages, between which sites, and how the tokens fall from
stage to stage. For each it finds the mildest one that meets the budget (cost falls with every
level), and takes the schedule of least error; among nearly equal ones the one with fewest stages,
since each distinct count costs compile time. It is pure and deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tokenpass.plan.choice import Choice, incoming_counts
from tokenpass.plan.prior import plan_error

Levels = tuple[int, ...]
Cost = Callable[[Sequence[int]], float]

MOST_STAGES = 8
FEW_STAGES = 4
WORTH_A_STAGE = 1.12
STEPS = 24


@dataclass(frozen=True)
class Chosen:
    """Levels behind each choice, what they cost, their prior error, and what is to be said."""

    levels: Levels
    cost: float
    error: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Which choices act (by index), and whether each keeps the same share or drops as many."""

    stages: tuple[int, ...]
    even_drop: bool


def choose(
    choices: tuple[Choice, ...],
    cost: Cost,
    goal: float | None,
    max_error: float | None = None,
) -> Chosen:
    """The mildest levels with `cost(levels) <= goal` (and error <= max_error, if given).

    `goal` None: the cheapest plan within `max_error`. An unreachable goal gives the knee of the
    error curve, and a note.
    """
    untouched = keep_all(choices)
    if not choices:
        return Chosen(untouched, cost(untouched), 0.0)
    schedules = list(all_schedules(choices))
    if goal is None:
        return cheapest_within(choices, cost, schedules, max_error or 0.0)
    if cost(untouched) <= goal:
        return Chosen(untouched, cost(untouched), plan_error(choices, untouched))
    fitting = [s for s in (fit(choices, cost, goal, s) for s in schedules) if s is not None]
    if not fitting:
        return at_knee(choices, cost, schedules, goal, max_error)
    best = fewest_stages(choices, fitting)
    levels = use_up(choices, cost, goal, best)
    chosen = Chosen(levels, cost(levels), plan_error(choices, levels))
    if max_error is not None and chosen.error > max_error:
        within = cheapest_within(choices, cost, schedules, max_error)
        note = f"max_error binds: the budget would need an estimated error of {chosen.error:.3g}"
        return Chosen(within.levels, within.cost, within.error, (*within.notes, note))
    return chosen


def keep_all(choices: Sequence[Choice]) -> Levels:
    """Levels that remove nothing (fixed ones are the user's and stay)."""
    return levels_for(choices, (), lambda choice, incoming, stage: incoming)


def levels_for(
    choices: Sequence[Choice],
    stages: Sequence[int],
    keep: Callable[[Choice, int, int], float],
) -> Levels:
    """Counts behind each choice; `keep(choice, incoming, stage)` says how many stay at a stage."""
    incoming: dict[int, int] = {}
    levels = []
    for at, choice in enumerate(choices):
        before = incoming.get(choice.stream, choice.tokens)
        after = before
        if choice.fixed is not None:
            after = choice.settled(before, int(choice.kept(before, choice.fixed)))
        elif at in stages:
            wanted = friendly(keep(choice, before, stages.index(at)), choice.tokens)
            after = choice.settled(before, wanted)
        incoming[choice.stream] = after
        levels.append(after)
    return tuple(levels)


def friendly(count: float, tokens: int) -> int:
    """A count rounded down to what vector and tile widths like: the coarser the longer."""
    step = 1
    while step < 16 and step * 32 <= tokens:
        step *= 2
    return int(count) // step * step or int(count)


def all_schedules(choices: Sequence[Choice]) -> Iterator[Schedule]:
    """Every pass by itself: up to so many stages, evenly spread from an early site on."""
    for name in dict.fromkeys(choice.pass_name for choice in choices):
        free = [at for at, c in enumerate(choices) if c.pass_name == name and c.fixed is None]
        starts = len(free) // 2 + 1 if free else 0
        for first in range(0, starts, max(1, starts // MOST_STAGES)):
            rest = free[first:]
            for count in range(1, min(len(rest), MOST_STAGES) + 1):
                for stages in dict.fromkeys((spread(rest, count), lead(rest, count))):
                    yield Schedule(stages, even_drop=False)
                    if count > 1:
                        yield Schedule(stages, even_drop=True)


def spread(places: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the places at even distances, the first one included."""
    return tuple(places[at * len(places) // count] for at in range(count))


def lead(places: Sequence[int], count: int) -> tuple[int, ...]:
    """The first `count` places."""
    return tuple(places[:count])


def apply(choices: Sequence[Choice], schedule: Schedule, strength: float) -> Levels:
    """Levels of a schedule at a strength from 0 (nothing leaves) to 1 (the lowest allowed)."""

    def keep(choice: Choice, incoming: int, stage: int) -> float:
        if schedule.even_drop:
            count = len(schedule.stages)
            floor = choice.kept(choice.tokens, choice.lowest ** min(count, 3))
            return choice.tokens - (choice.tokens - floor) * strength * (stage + 1) / count
        return choice.kept(incoming, 1 - (1 - choice.lowest) * strength)

    return levels_for(choices, schedule.stages, keep)


def fit(
    choices: Sequence[Choice], cost: Cost, goal: float, schedule: Schedule
) -> tuple[Schedule, Levels] | None:
    """The mildest strength of a schedule that meets the goal; None if none does."""
    if cost(apply(choices, schedule, 1.0)) > goal:
        return None
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if cost(apply(choices, schedule, middle)) <= goal:
            high = middle
        else:
            low = middle
        if apply(choices, schedule, low) == apply(choices, schedule, high):
            break
    return schedule, apply(choices, schedule, high)


def fewest_stages(choices: Sequence[Choice], fitting: Sequence[tuple[Schedule, Levels]]) -> Levels:
    """Least error; a further stage must be worth its compile time, the more so beyond a few."""

    def price(item: tuple[Schedule, Levels]) -> tuple[float, Levels]:
        stages = len(set(item[1])) - (choices[0].tokens in item[1])
        extra = max(0, stages - FEW_STAGES)
        return plan_error(choices, item[1]) * WORTH_A_STAGE ** (stages + 3 * extra), item[1]

    return min(fitting, key=price)[1]


def use_up(choices: Sequence[Choice], cost: Cost, goal: float, levels: Levels) -> Levels:
    """Raise counts, the last stages first, while the goal is still met."""
    incoming = incoming_counts(choices, levels)
    for start in reversed([at for at, level in enumerate(levels) if level < incoming[at]]):
        before, stream = incoming[start], choices[start].stream
        step = friendly(16, choices[start].tokens) or 1
        raised = list(levels)
        for at in range(start, len(levels)):
            same = levels[at] == levels[start] and choices[at].stream == stream
            if same and choices[at].fixed is None:
                raised[at] = choices[start].settled(before, levels[at] + step)
        if raised[start] < before and cost(raised) <= goal:
            levels = tuple(raised)
    return levels


def at_knee(
    choices: Sequence[Choice],
    cost: Cost,
    schedules: Sequence[Schedule],
    goal: float,
    max_error: float | None,
) -> Chosen:
    """The frontier point farthest from the line through the ends of the error curve."""
    points = frontier(choices, cost, schedules)
    if max_error is not None:
        points = [p for p in points if p.error <= max_error] or points[:1]
    least = points[-1]
    # where the curve is straight all points are as far, and the cheapest is nearest to the wish
    knee = max(points, key=lambda p: (round(knee_distance(p, points[0], points[-1]), 9), -p.cost))
    notes = (
        "the budget cannot be reached above the passes' lowest levels: the cheapest plan costs "
        f"{least.cost / goal:.2f} times what it allows, and this is the knee of the error curve",
        "more passes, later layers in scope or a larger budget would reach more",
    )
    return Chosen(knee.levels, knee.cost, knee.error, notes)


def frontier(choices: Sequence[Choice], cost: Cost, schedules: Sequence[Schedule]) -> list[Chosen]:
    """Plans that no other plan beats in both cost and error, from dense to cheapest."""
    untouched = keep_all(choices)
    points = [Chosen(untouched, cost(untouched), 0.0)]
    for schedule in schedules:
        for step in range(1, 9):
            levels = apply(choices, schedule, step / 8)
            points.append(Chosen(levels, cost(levels), plan_error(choices, levels)))
    points.sort(key=lambda p: (p.cost, p.error, p.levels))
    kept: list[Chosen] = []
    for point in points:
        if not kept or point.error < kept[-1].error:
            kept.append(point)
    return kept[::-1]


def knee_distance(point: Chosen, first: Chosen, last: Chosen) -> float:
    """How far below the line through the ends a point lies, both axes scaled to one."""
    width = (first.cost - last.cost) or 1.0
    height = (last.error - first.error) or 1.0
    saved = (first.cost - point.cost) / width
    return saved - (point.error - first.error) / height


def cheapest_within(
    choices: Sequence[Choice], cost: Cost, schedules: Sequence[Schedule], max_error: float
) -> Chosen:
    """The cheapest plan whose prior error stays within a bound."""
    best = Chosen(keep_all(choices), cost(keep_all(choices)), 0.0)
    for schedule in schedules:
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            if plan_error(choices, apply(choices, schedule, middle)) <= max_error:
                low = middle
            else:
                high = middle
        levels = apply(choices, schedule, low)
        found = Chosen(levels, cost(levels), plan_error(choices, levels))
        if found.cost < best.cost and found.error <= max_error:
            best = found
    return best
