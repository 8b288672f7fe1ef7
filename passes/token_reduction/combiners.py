"""Combiners: what becomes of the tokens that leave. Dropped, or merged by size-weighted means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tokenpass.shapes import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Merged:
    """Sizes [batch, count], members' shares [batch, tokens] and padding of merged tokens."""

    sizes: Float[torch.Tensor, "batch count"]
    shares: Float[torch.Tensor, "batch tokens"]
    padding: Bool[torch.Tensor, "batch count"] | None


def size_weighted_mean(
    sizes: Float[torch.Tensor, "batch tokens"],
    segment: Int[torch.Tensor, "batch tokens"],
    kept: Int[torch.Tensor, "batch count"],
    count: Any,
) -> Merged:
    """Members weigh by the full-length tokens that they stand for; padding (size 0) has no weight.

    A segment of padding alone keeps the value of the token that stays.
    """
    total = sizes.new_zeros(sizes.shape[0], count).scatter_add(1, segment, sizes)
    whole = torch.gather(total, 1, segment)
    stays = torch.zeros_like(sizes).scatter(1, kept, 1.0)
    shares = torch.where(whole > 0, sizes / whole.clamp_min(1.0), stays)
    return Merged(total, shares, total == 0)


def latest_member(
    real: Bool[torch.Tensor, "#batch tokens"] | None,
    segment: Int[torch.Tensor, "batch tokens"],
    kept: Int[torch.Tensor, "batch count"],
    position: Int[torch.Tensor, "#batch tokens"] | None = None,
) -> Int[torch.Tensor, "batch count"]:
    """The place of the last real token of each segment: the one that a merged token stands for.

    `position`: where the tokens stand, if it does not rise with their places.
    """
    place = torch.arange(segment.shape[1], device=segment.device).expand(segment.shape)
    order = None
    if position is not None:
        order = torch.argsort(position.expand(segment.shape), dim=1)
        place = torch.argsort(order, dim=1)
    stays = kept if order is None else torch.gather(place, 1, kept)
    if real is not None:
        place = torch.where(real, place, -1)
    latest = stays.scatter_reduce(1, segment, place, "amax", include_self=real is None)
    latest = torch.where(latest < 0, stays, latest)  # padding alone: the token that stays
    return latest if order is None else torch.gather(order, 1, latest)


def by_position(
    latest: Int[torch.Tensor, "batch count"],
    segment: Int[torch.Tensor, "batch tokens"],
    kept: Int[torch.Tensor, "batch count"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places renumbered so that the latest members rise: (segment, kept)."""
    order = torch.argsort(latest, dim=1, stable=True)
    place = torch.argsort(order, dim=1)
    return torch.gather(place, 1, segment), torch.gather(kept, 1, order)
