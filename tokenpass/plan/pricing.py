"""The cost of plans before they are made: one replay with a symbol for each level.

All candidates are replayed once on fake tensors in a fake mode of their own (dynamic sizes at the
example call's), each with a symbolic count. The rewritten graph's cost is then an expression of
those symbols, and a plan that leaves a candidate out sets its symbol to the tokens coming in and
drops the operators that the edit would have added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from tokenpass.cost.device import DeviceProfile
from tokenpass.cost.roofline import GraphCost, Objective, graph_cost
from tokenpass.edits import Rejection
from tokenpass.graph.view import View
from tokenpass.plan.choice import Choice, levels_used
from tokenpass.rewrite.restoring import ReplayRefused
from tokenpass.rewrite.rewriter import Actions, rewrite_at_levels, static_fakes


@dataclass(frozen=True, eq=False)
class Prices:
    """Predicted costs of plans of one graph, in the objective's unit (seconds, flops or bytes)."""

    cost: GraphCost
    symbols: tuple[sympy.Symbol, ...]
    choices: tuple[Choice, ...]
    profile: DeviceProfile
    objective: Objective

    def __call__(self, levels: Sequence[int]) -> float:
        """Cost of the plan that keeps `levels[i]` tokens behind choice i."""
        used = levels_used(self.choices, levels)
        unused = tuple(at for at, level in enumerate(used) if level is None)
        values = dict(zip(self.symbols, map(int, levels), strict=True))
        return self.cost.evaluate(values, self.profile, self.objective, unused)


def level_symbols(env: ShapeEnv, hints: Sequence[int]) -> list[torch.SymInt]:
    """One symbolic count for each hint; hints must differ, so that no two are taken for equal."""
    made = []
    for at, hint in enumerate(hints):
        source = ConstantSource(f"level_{at}")
        symbol = env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
        made.append(env.create_symintnode(symbol, hint=hint, source=source))
    return made


def price(
    view: View,
    fakes: Sequence[Any],
    choices: tuple[Choice, ...],
    actions_at: Callable[[Sequence[Any]], Actions],
    op_costs: Mapping[Any, Any],
    profile: DeviceProfile,
    objective: Objective,
) -> Prices:
    """Replay all choices with symbolic levels; raises `ReplayRefused` if one is unsound.

    The choices of the result are in runs: where an operator between two sites needs all tokens,
    they come back, and what the first site removed is there again at the second.

    `actions_at(levels)` gives the replay's actions for counts of tokens, one for each choice.
    """
    module, symbols, restored = replay_with_symbols(view, fakes, choices, actions_at)
    runs = in_runs(choices, restored)
    return Prices(graph_cost(module, op_costs), symbols, runs, profile, objective)


def replay_with_symbols(
    view: View,
    fakes: Sequence[Any],
    choices: tuple[Choice, ...],
    actions_at: Callable[[Sequence[Any]], Actions],
) -> tuple[GraphModule, tuple[sympy.Symbol, ...], frozenset[int]]:
    """The graph with all choices at symbolic levels, the symbols, and where tokens had come back.

    A count that fits the tokens left by the site before may be too low for all of them: such a
    place shows by that, and the replay starts again.
    """
    came_back: frozenset[int] = frozenset()
    while True:
        env = ShapeEnv()
        mode = FakeTensorMode(shape_env=env)
        mode.cache_enabled = False
        levels = level_symbols(env, example_levels(in_runs(choices, came_back)))
        inputs = static_fakes(fakes, mode)
        try:
            module, restored = rewrite_at_levels(view, actions_at, levels, inputs, mode)
        except ReplayRefused as refused:
            at, code = refused.owner, refused.rejection.code
            if at is None or at in came_back or code != "level_out_of_range":
                raise
            came_back |= {at}
            continue
        return module, tuple(level.node.expr for level in levels), restored


def in_runs(choices: Sequence[Choice], restored: Collection[int]) -> tuple[Choice, ...]:
    """Choices with a stream of their own behind every place where their tokens had come back."""
    run: dict[int, int] = {}
    found: list[Choice] = []
    for at, choice in enumerate(choices):
        if at in restored or choice.stream not in run:
            run[choice.stream] = at
        found.append(replace(choice, stream=run[choice.stream]))
    return tuple(found)


def example_levels(choices: Sequence[Choice]) -> list[int]:
    """Falling, distinct counts that every choice allows, for the symbolic replay.

    They differ by more than 1: tracing takes sizes of 0 and 1 for constants, also that of a drop.
    Raises `ReplayRefused` for a choice that has too few tokens for that.
    """
    left = Counter(choice.stream for choice in choices)
    incoming: dict[int, int] = {}
    levels, used = [], set()
    for owner, choice in enumerate(choices):
        before = incoming.get(choice.stream, choice.tokens)
        drop = min(max(3, before // 16), max(2, (before - 2) // left[choice.stream]))
        left[choice.stream] -= 1
        least = max(choice.least(before), 2)
        level = max(least, before - drop)
        while level in used and level > least:
            level -= 1
        if before - level < 2:
            because = f"of {before} tokens too few are left to choose among"
            raise ReplayRefused(Rejection("too_few_tokens", choice.site, because), owner)
        used.add(level)
        incoming[choice.stream] = level
        levels.append(level)
    return levels
