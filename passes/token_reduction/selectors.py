"""Selectors: from scores to kept tokens, in order; ties go to the lower index."""

from __future__ import annotations

from typing import Any

import torch

from tokenpass.shapes import Bool, Float, Int


def keep_best(
    score: Float[torch.Tensor, "#batch tokens"],
    count: Any,
    protected: Bool[torch.Tensor, "#batch tokens"] | None,
    padding: Bool[torch.Tensor, "#batch tokens"] | None,
) -> Int[torch.Tensor, "#batch count"]:
    """Places of the `count` best tokens, rising; protected ones first, padding last."""
    if padding is not None:
        score = torch.where(padding, float("-inf"), score)
    if protected is not None:
        score = torch.where(protected, float("inf"), score)
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    return torch.sort(order.narrow(1, 0, count), dim=1).values


def merge_best(
    score: Float[torch.Tensor, "batch sources"],
    partner: Int[torch.Tensor, "batch sources"],
    tokens: Any,
    count: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `tokens - count` best pairs merge: (segment, kept, moved).

    segment [batch, tokens]: the new place of every token; kept [batch, count]: the token that
    stays in each place, in order; moved [batch, tokens - count]: the tokens that join one.
    """
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    chosen = order.narrow(1, 0, tokens - count)
    moved, goal = chosen * 2, torch.gather(partner, 1, chosen) * 2 + 1
    batch, place = score.shape[0], torch.arange(tokens, device=score.device)
    stays = torch.ones(batch, tokens, dtype=torch.int64, device=score.device)
    stays = stays.scatter(1, moved, 0)
    slot = torch.cumsum(stays, 1) - 1
    segment = slot.scatter(1, moved, torch.gather(slot, 1, goal))
    kept = torch.sort(torch.where(stays == 1, place[None], tokens), dim=1).values.narrow(
        1, 0, count
    )
    return segment, kept, moved
