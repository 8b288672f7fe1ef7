"""Best partner of every second token by cosine similarity: the matching step of ToMe.

Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023), section 3: tokens at even places
are sources, tokens at odd places targets, and each source proposes its most similar target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator, size_expr
from tokenpass.shapes import Float, Int

TILE = 1 << 19
"""Similarities held at once (elements, 2 MiB in float32): measured best of 2**16 to 2**20."""

CALLS = 20
"""Calls into torch that the reference makes where one tile is enough; a test counts them."""

SMALL = 1 << 15
"""Similarities up to which one call is faster than several that use vector instructions."""

TINY = 1e-12
"""Least norm that is divided by, so that a token of zeros has similarity 0 and not NaN."""


def bipartite_match(
    keys: Float[Tensor, "batch tokens channels"],
    sizes: Float[Tensor, "batch tokens"] | None = None,
    protected: Int[Tensor, "#batch places"] | None = None,
    heads: int = 1,
) -> tuple[Float[Tensor, "batch sources"], Int[Tensor, "batch sources"]]:
    """Score and index of each source's best target; what a policy calls.

    The channels are those of `heads` heads side by side, and similarity is the mean of the heads'
    cosines. With sources = ceil(tokens / 2) at even places and targets = floor(tokens / 2) at odd:

        score[b, i]   = max over targets j that may be joined of similarity(2i, 2j + 1)
        partner[b, i] = the lowest such j (token 2j + 1 of the stream)

    Tokens of size 0 (padding) and those at the places in `protected` neither join nor are joined.
    Computed in float32 whatever the input's dtype; `score` is float32, `partner` int64. Equal
    scores go to the lower target. A source that may not join keeps its partner and has score -inf;
    where no target is left, score is -inf and partner 0. Keys that are not finite leave both
    unspecified, the partner always in range. Neither output has a gradient.
    """
    return torch.ops.tokenpass.bipartite_match.default(keys, sizes, protected, heads)


def reference(
    keys: Tensor, sizes: Tensor | None = None, protected: Tensor | None = None, heads: int = 1
) -> tuple[Tensor, Tensor]:
    """`bipartite_match` in plain torch, one tile of at most max(TILE, targets) similarities."""
    check(keys, sizes, protected, heads)
    batch, tokens, channels = keys.shape
    sources, targets = (tokens + 1) // 2, tokens // 2
    keys = keys.detach().float()
    if batch * sources == 0 or targets == 0:
        nothing = torch.zeros((batch, sources), dtype=torch.int64, device=keys.device)
        return keys.new_full((batch, sources), -torch.inf), nothing
    apart = keys.reshape(batch, tokens, heads, channels // heads)
    norm = torch.linalg.vector_norm(apart, dim=-1, keepdim=True).clamp_min_(TINY)
    unit = (apart / norm).view(batch, tokens, channels)
    source, target = unit[:, 0::2], unit[:, 1::2].mT
    blocked = blocked_tokens(keys, sizes, protected)
    rows = max(1, TILE // targets)
    samples = max(1, rows // sources)
    if batch <= samples and sources <= rows:
        score, partner = _best(source, target, blocked, slice(None))
    else:
        score = keys.new_empty((batch, sources))
        partner = torch.empty((batch, sources), dtype=torch.int64, device=keys.device)
        for b in range(0, batch, samples):
            of = slice(b, b + samples)
            for i in range(0, sources, rows):
                at = (of, slice(i, i + rows))
                score[at], partner[at] = _best(source[at], target[of], blocked, of)
    score /= heads
    if blocked is not None:
        score.masked_fill_(blocked[:, 0::2], -torch.inf)
    return score, partner


def blocked_tokens(keys: Tensor, sizes: Tensor | None, protected: Tensor | None) -> Tensor | None:
    """Tokens that neither join nor are joined, bool [batch, tokens]; None: all may."""
    if sizes is None and protected is None:
        return None
    blocked = keys.new_zeros(keys.shape[:2], dtype=torch.bool) if sizes is None else sizes == 0
    if protected is not None:
        blocked = blocked.scatter(1, protected.expand(keys.shape[0], -1), True)
    return blocked


def _best(
    source: Tensor, target: Tensor, blocked: Tensor | None, of: slice
) -> tuple[Tensor, Tensor]:
    """Largest product of each source with a target that may be joined, and which one it is."""
    tile = torch.bmm(source, target)
    if blocked is not None:
        tile.masked_fill_(blocked[of, None, 1::2], -torch.inf)
    return tile.max(-1) if tile.numel() <= SMALL else _first_max(tile)


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
    first.clamp_max_(targets - 1)  # a NaN equals nothing: keep it in range
    return best, first.to(torch.int64)


def fake(
    keys: Tensor, sizes: Tensor | None = None, protected: Tensor | None = None, heads: int = 1
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the outputs, [batch, sources] each."""
    check(keys, sizes, protected, heads)
    shape = (keys.shape[0], (keys.shape[1] + 1) // 2)
    return keys.new_empty(shape, dtype=torch.float32), keys.new_empty(shape, dtype=torch.int64)


def check(
    keys: Tensor, sizes: Tensor | None = None, protected: Tensor | None = None, heads: int = 1
) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    if keys.dim() != 3 or not keys.is_floating_point() or heads < 1 or keys.shape[2] % heads:
        raise ValueError(
            "tokenpass::bipartite_match: keys must be floating point [batch, tokens, channels] "
            f"with {heads} equal heads, got {keys.dtype} with shape {tuple(keys.shape)}"
        )
    batch, tokens, _ = keys.shape
    if sizes is not None and (not sizes.is_floating_point() or sizes.shape != (batch, tokens)):
        raise ValueError(
            f"tokenpass::bipartite_match: sizes must be floating point [{batch}, {tokens}], "
            f"got {sizes.dtype} {tuple(sizes.shape)}"
        )
    check_places("bipartite_match", protected, batch)


def check_places(operator: str, places: Tensor | None, batch: int | torch.SymInt) -> None:
    """Raises ValueError unless `places` are int64 [batch or 1, any number] (or None)."""
    if places is None:
        return
    if places.dtype != torch.int64 or places.dim() != 2 or places.shape[0] not in (1, batch):
        raise ValueError(
            f"tokenpass::{operator}: protected must be int64 [{batch} or 1, places], "
            f"got {places.dtype} {tuple(places.shape)}"
        )


def cost(
    keys: Tensor, sizes: Tensor | None = None, protected: Tensor | None = None, heads: int = 1
) -> OpCost:
    """One GEMM of sources by targets, a comparison per similarity, and the norms.

    flops = 2 batch sources targets channels + batch sources targets + 3 batch tokens channels
    """
    batch, tokens, channels = (size_expr(size) for size in keys.shape)
    sources = size_expr((keys.shape[1] + 1) // 2)
    targets = size_expr(keys.shape[1] // 2)
    pairs = batch * sources * targets
    return OpCost(
        work="gemm",
        flops=2 * pairs * channels + pairs + 3 * batch * tokens * channels,
        dims=(batch, sources, targets, channels),
        calls=CALLS,
    )


def example(
    generator: torch.Generator, dtype: torch.dtype, *, batch: int, tokens: int, width: int
) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """Arguments of one call: normal keys, some tokens zero, padding and protection or not."""
    with_sizes, with_protected, shared = (torch.rand(3, generator=generator) < 0.5).tolist()
    heads = int(torch.randint(1, 4, (), generator=generator))
    keys = torch.randn(batch, tokens, heads * width, generator=generator)
    keys[torch.rand(batch, tokens, generator=generator) < 0.05] = 0.0
    sizes = torch.randint(0, 4, (batch, tokens), generator=generator).to(torch.float32)
    rows, places = 1 if shared else batch, 2 if tokens else 0
    protected = torch.randint(0, max(1, tokens), (rows, places), generator=generator)
    return (
        keys.to(dtype),
        sizes if with_sizes else None,
        protected if with_protected else None,
        heads,
    )


OPERATOR = Operator(
    name="bipartite_match",
    schema=(
        "(Tensor keys, Tensor? sizes=None, Tensor? protected=None, int heads=1)"
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
