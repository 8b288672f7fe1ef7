"""token_prune: the tokens with the lowest scores leave the stream.

    x [batch, n, width] -> score -> the count best, in order -> x' [batch, count, width]

A pruned token keeps the value that it had when it left: full-length outputs get it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import find_axis
from tokenpass.graph.view import View
from tokenpass.passes.base import Candidate, Found, Level, LossyPass, PassContext
from tokenpass.passes.token_reduction.scorers import SCORERS, attention_row
from tokenpass.passes.token_reduction.selectors import keep_best
from tokenpass.passes.token_reduction.signals import SiteSignals
from tokenpass.passes.token_reduction.token_pass import token_candidates
from tokenpass.rewrite.reduction import Gather, Reduction, owned_by
from tokenpass.rewrite.replay import Action, Replay


class TokenPrune(LossyPass):
    """Pruning by a score, at the end of a block."""

    name: ClassVar[str] = "token_prune"
    role: ClassVar[str] = "block_output"
    lowest: ClassVar[float] = 0.1
    policies: ClassVar[tuple[str, ...]] = tuple(s.__name__ for s in SCORERS)
    error_weight: ClassVar[Mapping[str, float]] = {
        "attention_row": 1.6,
        "key_norm": 1.8,
        "uniform": 1.9,
        "random": 2.0,
    }

    def candidates(self, view: View, context: PassContext) -> Found:
        scorer = find_scorer(context.policy or self.policies[0])
        found = token_candidates(view, context, self.name, self.role, scorer, self.lowest)
        if scorer is not attention_row:
            return found
        good = tuple(c for c in found.candidates if c.stream.protected.positions)
        bad = tuple(
            Rejection(
                "no_query_position",
                c.site.name,
                "no position is read alone, so there is no row of attention to score by",
                "use policy: key_norm, or token_merge",
            )
            for c in found.candidates
            if not c.stream.protected.positions
        )
        return Found(good, (*found.rejections, *bad))

    def action(self, candidate: Candidate, level: Level, owner: int, seed: int) -> Action:
        scorer = find_scorer(candidate.policy)

        def act(replay: Replay, node: Node, value: Any) -> Reduction:
            at = find_axis(replay.label(node), candidate.stream.axis)
            parent = replay.label(node)[at[0]][at[1]].cut if at else None
            count = level(replay.size(candidate.stream.axis.size))
            signals = SiteSignals(replay, candidate, parent, count, seed)
            with owned_by(owner):
                return prune_tokens(signals, scorer, value, owner)

        return Action(owner, act)


def find_scorer(name: str) -> Any:
    """The scorer of that name."""
    return next(s for s in SCORERS if s.__name__ == name)


def prune_tokens(signals: SiteSignals, scorer: Any, value: Any, owner: int) -> Reduction:
    """The reduction that keeps the best tokens at a site."""
    signals.check_level(signals.inside, owner)
    parent, padding = signals.parent, signals.padding
    score = signals.read(scorer)
    index = keep_best(score, signals.count, signals.protected(), padding)
    gathered = Gather(index)
    sizes = parent.sizes if parent is not None else None
    rows = index.shape[0]
    whole = None
    if parent is not None and parent.sizes is not None and parent.whole is not None:
        whole = partial(kept_sizes, parent, index)
    return Reduction(
        signals.stream.axis,
        signals.site.batch,
        signals.tokens,
        signals.count,
        gathered,
        parent,
        sizes=None if sizes is None else sizes.expand(rows, -1).gather(1, index),
        whole=whole,
        saved=value,
        padding=None if padding is None else padding.expand(rows, -1).gather(1, index),
        ordered=parent is None or parent.ordered,
        owner=owner,
        device=signals.device,
        memo={"site": signals.site},
    )


def kept_sizes(parent: Reduction, index: torch.Tensor) -> torch.Tensor:
    """`[batch, count]`: full-length tokens in each one that is kept, padding among them."""
    return parent.all_sizes().expand(index.shape[0], -1).gather(1, index)
