"""Best partner of every second token by cosine similarity: the matching step of ToMe.

Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023), section 3: tokens at even places
are sources, tokens at odd places targets, and each source proposes its most similar target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator, size_expr
from tokenpass.shapes import Bool, Float, Int

TILE = 1 << 19
"""Similarities held at once (elements, 2 MiB in float32): measured best of 2**16 to 2**20."""

TINY = 1e-12
"""Least norm that is divided by, so that a token of zeros has similarity 0 and not NaN."""


def bipartite_match(
    keys: Float[Tensor, "batch tokens width"],
    blocked_source: Bool[Tensor, "batch sources"] | None = None,
    blocked_target: Bool[Tensor, "batch targets"] | None = None,
) -> tuple[Float[Tensor, "batch sources"], Int[Tensor, "batch sources"]]:
    """Score and index of each source's best target; what a policy calls.

    With sources = ceil(tokens / 2) at even places and targets = floor(tokens / 2) at odd places:

        score[b, i]   = max over targets j that are not blocked of cos(keys[b, 2i], keys[b, 2j+1])
        partner[b, i] = the lowest such j (token 2j + 1 of the stream)

    Computed in float32 whatever the input's dtype; `score` is float32, `partner` int64. Equal
    scores go to the lower target. A blocked source keeps its partner and has score -inf; where no
    target is left, score is -inf and partner 0. Keys that are not finite leave both unspecified,
    the partner always in range. Neither output has a gradient.
    """
    return torch.ops.tokenpass.bipartite_match.default(keys, blocked_source, blocked_target)


def reference(
    keys: Tensor, blocked_source: Tensor | None = None, blocked_target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`bipartite_match` in plain torch, one tile of at most max(TILE, targets) similarities."""
    check(keys, blocked_source, blocked_target)
    batch, tokens, _ = keys.shape
    sources, targets = (tokens + 1) // 2, tokens // 2
    keys = keys.detach().float()
    score = keys.new_full((batch, sources), -torch.inf)
    partner = torch.zeros((batch, sources), dtype=torch.int64, device=keys.device)
    if score.numel() == 0 or targets == 0:
        return score, partner
    norm = torch.linalg.vector_norm(keys, dim=-1).clamp_min_(TINY)
    # cos(s, t) = s.(t/|t|) / |s|: the source's norm does not change which target is best, so it
    # divides the maximum alone.
    source = keys[:, 0::2]
    target = (keys[:, 1::2] / norm[:, 1::2, None]).mT
    minus = None
    if blocked_target is not None:  # adding a row of -inf or 0 takes a fifth of masked_fill's time
        minus = keys.new_zeros((batch, 1, targets))
        minus.masked_fill_(blocked_target[:, None], -torch.inf)
    rows = max(1, TILE // targets)
    samples = max(1, rows // sources)
    for b in range(0, batch, samples):
        of = slice(b, b + samples)
        for i in range(0, sources, rows):
            tile = torch.bmm(source[of, i : i + rows], target[of])
            if minus is not None:
                tile += minus[of]
            score[of, i : i + rows], partner[of, i : i + rows] = _first_max(tile)
    score /= norm[:, 0::2]
    if blocked_source is not None:
        score.masked_fill_(blocked_source, -torch.inf)
    return score, partner


def _first_max(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last dimension and its first index; overwrites `tile`.

    `max(dim)` scans without vector instructions. Two vectorised maxima are three times faster:
    the second is over `equals the maximum` x (targets - j), largest at the first such j. float32
    counts exactly up to 2**24 targets.
    """
    targets = tile.shape[-1]
    best = tile.amax(-1)
    countdown = torch.arange(targets, 0, -1, dtype=tile.dtype, device=tile.device)
    first = targets - tile.eq_(best[..., None]).mul_(countdown).amax(-1)
    return best, first.clamp_max_(targets - 1)  # a NaN equals nothing: keep it in range


def fake(
    keys: Tensor, blocked_source: Tensor | None = None, blocked_target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the outputs, [batch, sources] each."""
    check(keys, blocked_source, blocked_target)
    shape = (keys.shape[0], (keys.shape[1] + 1) // 2)
    return keys.new_empty(shape, dtype=torch.float32), keys.new_empty(shape, dtype=torch.int64)


def check(
    keys: Tensor, blocked_source: Tensor | None = None, blocked_target: Tensor | None = None
) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    if keys.dim() != 3 or not keys.is_floating_point():
        raise ValueError(
            "tokenpass::bipartite_match: keys must be floating point [batch, tokens, width], "
            f"got {keys.dtype} with {keys.dim()} dimensions"
        )
    batch, tokens, _ = keys.shape
    for name, mask, count in (
        ("blocked_source", blocked_source, (tokens + 1) // 2),
        ("blocked_target", blocked_target, tokens // 2),
    ):
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (batch, count)):
            raise ValueError(
                f"tokenpass::bipartite_match: {name} must be bool [{batch}, {count}], "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )


def cost(
    keys: Tensor, blocked_source: Tensor | None = None, blocked_target: Tensor | None = None
) -> OpCost:
    """One GEMM of sources by targets, a comparison per similarity, and the norms.

    flops = 2 batch sources targets width + batch sources targets + 3 batch tokens width
    """
    batch, tokens, width = (size_expr(size) for size in keys.shape)
    sources = size_expr((keys.shape[1] + 1) // 2)
    targets = size_expr(keys.shape[1] // 2)
    pairs = batch * sources * targets
    return OpCost(
        work="gemm",
        flops=2 * pairs * width + pairs + 3 * batch * tokens * width,
        dims=(batch, sources, targets, width),
    )


def example(
    generator: torch.Generator, dtype: torch.dtype, *, batch: int, tokens: int, width: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Arguments of one call: normal keys, some tokens zero, each mask there or not (by seed)."""
    masked = torch.rand(2, generator=generator) < 0.5
    keys = torch.randn(batch, tokens, width, generator=generator)
    keys[torch.rand(batch, tokens, generator=generator) < 0.05] = 0.0
    blocked_source = torch.rand(batch, (tokens + 1) // 2, generator=generator) < 0.2
    blocked_target = torch.rand(batch, tokens // 2, generator=generator) < 0.3
    return (
        keys.to(dtype),
        blocked_source if masked[0] else None,
        blocked_target if masked[1] else None,
    )


OPERATOR = Operator(
    name="bipartite_match",
    schema=(
        "(Tensor keys, Tensor? blocked_source=None, Tensor? blocked_target=None)"
        " -> (Tensor score, Tensor partner)"
    ),
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"batch": range(4), "tokens": range(40), "width": range(1, 50)},
    dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
)
