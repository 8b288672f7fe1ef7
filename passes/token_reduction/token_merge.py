"""token_merge: similar tokens become one, their size-weighted mean (Bolya et al., ToMe, 2023).

    x [batch, n, width] -> bipartite_match(keys) -> segment -> x' [batch, count, width]
    later attention: softmax(q k^T / sqrt(d) + log s)

Full-length outputs give every token its representative's final value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch.fx import Node

from tokenpass.graph.axis import find_axis
from tokenpass.graph.view import View
from tokenpass.ops.merge_assignment import Assignment, latest_member, merge_assignment
from tokenpass.passes.base import Candidate, Found, Level, LossyPass, PassContext
from tokenpass.passes.token_reduction.matchers import MATCHERS
from tokenpass.passes.token_reduction.signals import SiteSignals
from tokenpass.passes.token_reduction.span import read_inside
from tokenpass.passes.token_reduction.token_pass import token_candidates
from tokenpass.rewrite.reduction import Reduction, Segment, owned_by, sums_in
from tokenpass.rewrite.replay import Action, Replay


class TokenMerge(LossyPass):
    """Bipartite merging between attention and MLP."""

    name: ClassVar[str] = "token_merge"
    role: ClassVar[str] = "after_attention"
    lowest: ClassVar[float] = 0.5
    policies: ClassVar[tuple[str, ...]] = tuple(m.__name__ for m in MATCHERS)
    error_weight: ClassVar[Mapping[str, float]] = {"head_cosine": 0.96, "tome": 1.38}

    def candidates(self, view: View, context: PassContext) -> Found:
        matcher = find_matcher(context.policy or self.policies[0])
        found = token_candidates(view, context, self.name, self.role, matcher, self.lowest)
        spared = [
            replace(c, spared=read_inside(c.stream, c.span) + (len(c.span) + 1) // 2)
            for c in found.candidates
        ]
        return Found(tuple(spared), found.rejections)

    def action(self, candidate: Candidate, level: Level, owner: int, seed: int) -> Action:
        matcher = find_matcher(candidate.policy)

        def act(replay: Replay, node: Node, value: Any) -> Reduction:
            at = find_axis(replay.label(node), candidate.stream.axis)
            parent = replay.label(node)[at[0]][at[1]].cut if at else None
            count = level(replay.size(candidate.stream.axis.size))
            signals = SiteSignals(replay, candidate, parent, count, seed)
            if isinstance(candidate.stream.axis.size, torch.SymInt):
                # however short the stream is
                least = signals.fewest(sources(signals))
                signals = replace(signals, count=torch.sym_max(count, least))
            with owned_by(owner):
                return merge_tokens(signals, matcher, value, owner)

        return Action(owner, act)


def sources(signals: SiteSignals) -> Any:
    """Tokens that can join others: every second one, in a span perhaps not the first."""
    return (signals.inside + 1 - len(signals.candidate.span)) // 2


def whole_sizes(parent: Reduction | None, merged: Assignment, count: Any) -> torch.Tensor:
    """`[batch, count]`: full-length tokens in each merged one, padding among them."""
    before = torch.ones_like(merged.shares)
    if parent is not None and parent.sizes is not None:
        before = parent.all_sizes().expand(before.shape)
    empty = before.new_zeros(before.shape[0], count)
    return empty.scatter_add(1, merged.segment, before)


def find_matcher(name: str) -> Any:
    """The matcher of that name."""
    return next(m for m in MATCHERS if m.__name__ == name)


def merge_tokens(signals: SiteSignals, matcher: Any, value: Any, owner: int) -> Reduction:
    """The reduction that merges the most similar pairs at a site."""
    parent, tokens, count = signals.parent, signals.tokens, signals.count
    signals.check_level(sources(signals), owner)
    padding, protected = signals.padding, signals.protected_places()
    sizes = parent.sizes if parent is not None else None
    if sizes is None:
        sizes = torch.ones(signals.batch, tokens, device=signals.device, dtype=sums_in(value))
        if padding is not None:
            sizes = torch.where(padding, 0.0, sizes)
    causal = any(region.causal for region in signals.stream.regions)
    score, partner = matcher(signals.keys, None if padding is None else sizes, protected)
    merged = merge_assignment(score, partner, sizes, protected, count, causal)
    segment, kept = merged.segment, merged.kept
    real = None if padding is None else ~padding
    # places rise with positions, unless an earlier merge kept the places of its tokens that stayed
    where = None if parent is None or parent.ordered else parent
    return Reduction(
        signals.stream.axis,
        signals.site.batch,
        tokens,
        count,
        Segment(segment, merged.shares, kept, merged.moved),
        parent,
        latest=lambda: latest_member(
            real, segment, kept, None if where is None else where.position
        ),
        representative=segment,
        sizes=merged.sizes,
        logs=merged.log_sizes,
        whole=None if padding is None else lambda: whole_sizes(parent, merged, count),
        protected=None if protected is None else merged.protected,
        padding=merged.sizes == 0 if padding is not None else None,
        ordered=causal,
        owner=owner,
        device=signals.device,
    )
