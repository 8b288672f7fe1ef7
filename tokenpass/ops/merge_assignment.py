"""Which tokens merge, where every token goes, and with what share: ToMe's bookkeeping as one call.

As one operator it is one node to trace, to price and to compile, where its dozen steps on index
tensors would each be generated anew for every token count. Bolya et al., "Token Merging: Your ViT
But Faster" (ICLR 2023), section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import sympy
import torch
from torch import Tensor

from tokenpass.ops.bipartite_match import check_places
from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator, size_expr
from tokenpass.shapes import Bool, Float, Int

STEPS = 6.0
"""Passes over `[batch, tokens]` index tensors, in sorts of that size: measured on the CPU."""


CALLS = 38
"""Calls into torch that the reference makes; a test counts them."""


class Assignment(NamedTuple):
    """How the tokens of each sample merge.

    `segment`: every token's new place; `kept`: the token that stays in each place; `moved`: the
    tokens that join another; `shares`: each token's weight in its mean; `sizes`: what the merged
    ones stand for, `log_sizes` its logarithm (-inf for padding); `protected`: new places of the
    protected tokens (none where none were named).
    """

    segment: Int[Tensor, "batch tokens"]
    kept: Int[Tensor, "batch count"]
    moved: Int[Tensor, "batch moved"]
    shares: Float[Tensor, "batch tokens"]
    sizes: Float[Tensor, "batch count"]
    log_sizes: Float[Tensor, "batch count"]
    protected: Int[Tensor, "batch places"]


def merge_assignment(
    score: Float[Tensor, "batch sources"],
    partner: Int[Tensor, "batch sources"],
    sizes: Float[Tensor, "batch tokens"],
    protected: Int[Tensor, "#batch places"] | None,
    count: int,
    by_position: bool,
) -> Assignment:
    """The `tokens - count` best pairs merge, those of padding before all others.

    Source i is token 2i, its partner j is token 2j + 1; equal scores go to the lower source.
    Padding joins the first target that is padding; where none is, it merges after all others: a
    mask that hides padding says one thing of a whole segment.
    `sizes` are the full-length tokens that each one stands for, 0 for padding. Places are in the
    order of the tokens that stay, or with `by_position` in that of the latest real member of each.
    """
    call = torch.ops.tokenpass.merge_assignment.default
    return Assignment(*call(score, partner, sizes, protected, count, by_position))


def reference(
    score: Tensor,
    partner: Tensor,
    sizes: Tensor,
    protected: Tensor | None,
    count: int,
    by_position: bool,
) -> Assignment:
    """`merge_assignment` in plain torch."""
    check(score, partner, sizes, protected, count, by_position)
    sizes = sizes.detach()
    score, partner = padding_first(score.detach(), partner, sizes == 0)
    segment, kept, moved = merge_best(score, partner, sizes.shape[1], count)
    if by_position:
        segment, kept = renumber(latest_member(sizes > 0, segment, kept), segment, kept)
    total, shares = size_weighted_mean(sizes, segment, kept, count)
    named = segment.new_empty(1, 0) if protected is None else protected
    places = torch.gather(segment, 1, named.expand(segment.shape[0], -1))
    return Assignment(segment, kept, moved, shares, total, torch.log(total), places)


def padding_first(score: Tensor, partner: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and partners [batch, sources] with those of padding as `merge_assignment` says."""
    source, target = padding[:, 0::2], padding[:, 1::2]
    if target.shape[1] == 0:
        return score, partner
    found, first = target.max(1, keepdim=True)
    ranked = torch.where(found, torch.inf, -torch.inf).to(score.dtype)
    return torch.where(source, ranked, score), torch.where(source & found, first, partner)


def merge_best(score: Tensor, partner: Tensor, tokens: int, count: int) -> tuple[Tensor, ...]:
    """(segment, kept, moved) of the best pairs, places in the order of the tokens that stay."""
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    chosen = order.narrow(1, 0, tokens - count)
    moved, goal = chosen * 2, torch.gather(partner, 1, chosen) * 2 + 1
    stays = torch.ones(score.shape[0], tokens, dtype=torch.int64, device=score.device)
    stays.scatter_(1, moved, 0)
    slot = torch.cumsum(stays, 1) - 1
    segment = slot.scatter(1, moved, torch.gather(slot, 1, goal))
    kept = torch.sort(stays, dim=1, descending=True, stable=True).indices.narrow(1, 0, count)
    return segment, kept.contiguous(), moved


def size_weighted_mean(
    sizes: Tensor, segment: Tensor, kept: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Merged sizes [batch, count] and members' shares [batch, tokens]; padding has no weight.

    A segment of padding alone keeps the value of the token that stays.
    """
    total = sizes.new_zeros(sizes.shape[0], count).scatter_add(1, segment, sizes)
    whole = torch.gather(total, 1, segment)
    stays = torch.zeros_like(sizes).scatter_(1, kept, 1.0)
    return total, torch.where(whole > 0, sizes / whole.clamp_min(1.0), stays)


def latest_member(
    real: Bool[Tensor, "#batch tokens"] | None,
    segment: Int[Tensor, "batch tokens"],
    kept: Int[Tensor, "batch count"],
    position: Int[Tensor, "#batch tokens"] | None = None,
) -> Int[Tensor, "batch count"]:
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


def renumber(latest: Tensor, segment: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Places renumbered so that the latest members rise: (segment, kept)."""
    order = torch.argsort(latest, dim=1, stable=True)
    place = torch.argsort(order, dim=1)
    return torch.gather(place, 1, segment), torch.gather(kept, 1, order)


def check(
    score: Tensor,
    partner: Tensor,
    sizes: Tensor,
    protected: Tensor | None,
    count: int,
    by_position: bool,
) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    if sizes.dim() != 2 or not sizes.is_floating_point() or not score.is_floating_point():
        raise ValueError(
            "tokenpass::merge_assignment: sizes and scores must be floating point, sizes "
            f"[batch, tokens]; got {sizes.dtype} {tuple(sizes.shape)} and {score.dtype}"
        )
    wanted = (sizes.shape[0], (sizes.shape[1] + 1) // 2)
    if score.shape != wanted or partner.shape != wanted or partner.dtype != torch.int64:
        raise ValueError(
            f"tokenpass::merge_assignment: score and int64 partner must be {wanted}, got "
            f"{tuple(score.shape)} and {partner.dtype} {tuple(partner.shape)}"
        )
    check_places("merge_assignment", protected, sizes.shape[0])


def fake(
    score: Tensor,
    partner: Tensor,
    sizes: Tensor,
    protected: Tensor | None,
    count: int,
    by_position: bool,
) -> Assignment:
    """Shapes and dtypes of the outputs."""
    check(score, partner, sizes, protected, count, by_position)
    batch, tokens = sizes.shape
    return Assignment(
        partner.new_empty(batch, tokens),
        partner.new_empty(batch, count),
        partner.new_empty(batch, tokens - count),
        sizes.new_empty(batch, tokens),
        sizes.new_empty(batch, count),
        sizes.new_empty(batch, count),
        partner.new_empty(batch, 0 if protected is None else protected.shape[1]),
    )


def cost(
    score: Tensor,
    partner: Tensor,
    sizes: Tensor,
    protected: Tensor | None,
    count: int,
    by_position: bool,
) -> OpCost:
    """A few sorts and scatters over the tokens' indices."""
    batch, tokens = (size_expr(size) for size in sizes.shape)
    entries: sympy.Expr = batch * tokens
    return OpCost(work="sort", flops=entries, dims=(entries,), weight=STEPS, calls=CALLS)


def example(
    generator: torch.Generator, dtype: torch.dtype, *, batch: int, tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int, bool]:
    """Arguments of one call: some scores equal, some tokens padding, any count that is possible."""
    sources, targets = (tokens + 1) // 2, tokens // 2
    share, rises, named = torch.rand(3, generator=generator).tolist()
    score = torch.randint(0, 5, (batch, sources), generator=generator).to(dtype)
    partner = torch.randint(0, max(1, targets), (batch, sources), generator=generator)
    sizes = torch.randint(0, 4, (batch, tokens), generator=generator).to(dtype)
    protected = torch.randint(0, tokens, (1 if rises < 0.3 else batch, 2), generator=generator)
    count = tokens - int(share * (targets + 1))
    return score, partner, sizes, protected if named < 0.5 else None, count, rises < 0.5


OPERATOR = Operator(
    name="merge_assignment",
    schema=(
        "(Tensor score, Tensor partner, Tensor sizes, Tensor? protected, SymInt count,"
        " bool by_position) -> (Tensor segment, Tensor kept, Tensor moved, Tensor shares,"
        " Tensor merged, Tensor log_sizes, Tensor places)"
    ),
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"batch": range(1, 4), "tokens": range(2, 40)},
    dtypes=(torch.float32, torch.float64),
)
