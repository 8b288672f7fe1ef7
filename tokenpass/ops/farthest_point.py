"""Tokens that lie far apart, chosen one after the other: greedy max-min selection as one call.

Gonzalez, "Clustering to minimize the maximum intercluster distance" (1985); DivPrune (Alvar et
al., 2025) selects visual tokens so, by cosine distance: that is this on vectors of unit length. As
torch calls it is a chain of `count` dependent steps in the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.gather_tokens import check_rows
from tokenpass.ops.operator import Operator, size_expr, sum_dtype
from tokenpass.shapes import Float, Int

SETUP_CALLS = 11
STEP_CALLS = 13
"""Calls into torch that the reference makes with sizes: once, and a choice after `first`."""

PADDING, CHOSEN = -1.0, -2.0
"""Stand for the distances of padding and of chosen tokens: below every distance."""


def farthest_point(
    x: Float[Tensor, "batch tokens width"],
    count: int,
    first: Int[Tensor, "#batch"],
    sizes: Float[Tensor, "batch tokens"] | None = None,
) -> Int[Tensor, "batch count"]:
    """Distinct places of `count <= tokens` tokens, in the order in which they are chosen.

        index[b, 0] = first[b],  index[b, k] = argmax over i not chosen of
                                               min over j < k of |x[b, i] - x[b, index[b, j]]|

    Euclidean distance in float32 (float64 for float64); ties go to the lowest index. Tokens of
    size 0 (padding) are chosen when no other is left. A distance that is NaN does not count, so a
    token with a NaN is chosen soon, and once. `first` is int64 in `0 .. tokens - 1`: beyond
    it the CPU raises, and a GPU kernel starts with the nearest end. No gradient.
    """
    return torch.ops.tokenpass.farthest_point.default(x, count, first, sizes)


def reference(x: Tensor, count: int, first: Tensor, sizes: Tensor | None = None) -> Tensor:
    """`farthest_point` in plain torch."""
    check(x, count, first, sizes)
    batch, tokens, _ = x.shape
    index = torch.empty((batch, count), dtype=torch.int64, device=x.device)
    if index.numel() == 0:
        return index
    rows = x.detach().to(sum_dtype(x))
    nearest = rows.new_full((batch, tokens), torch.inf)
    if sizes is not None:
        nearest.masked_fill_(sizes == 0, PADDING)
    chosen = first.expand(batch)[:, None]
    for step in range(count):
        index[:, step] = chosen[:, 0]
        nearest.scatter_(1, chosen, CHOSEN)
        if step + 1 < count:
            at = torch.gather(rows, 1, chosen[..., None].expand(-1, -1, rows.shape[2]))
            apart = (rows - at).square_().sum(-1)
            nearest = torch.where(apart < nearest, apart, nearest)
            chosen = nearest.argmax(1, keepdim=True)
    return index


def check(x: Tensor, count: int, first: Tensor, sizes: Tensor | None = None) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    check_rows("farthest_point", x)
    batch, tokens, _ = x.shape
    known = isinstance(count, int) and isinstance(tokens, int)  # a symbol gets no guard
    if known and not 0 <= count <= tokens:
        raise ValueError(
            f"tokenpass::farthest_point: count must be in 0 .. {tokens}, the tokens there are; "
            f"got {count}"
        )
    if first.dtype != torch.int64 or first.dim() != 1 or first.shape[0] not in (1, batch):
        raise ValueError(
            f"tokenpass::farthest_point: first must be int64 [{batch} or 1], "
            f"got {first.dtype} {tuple(first.shape)}"
        )
    if sizes is not None and (not sizes.is_floating_point() or sizes.shape != (batch, tokens)):
        raise ValueError(
            f"tokenpass::farthest_point: sizes must be floating point [{batch}, {tokens}], "
            f"got {sizes.dtype} {tuple(sizes.shape)}"
        )


def fake(x: Tensor, count: int, first: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Shape and dtype of the output, [batch, count]."""
    check(x, count, first, sizes)
    return first.new_empty(x.shape[0], count)


def cost(x: Tensor, count: int, first: Tensor, sizes: Tensor | None = None) -> OpCost:
    """Every token's distance to each chosen one: three operations for an entry of `x`, a step."""
    batch, tokens, width = (size_expr(size) for size in x.shape)
    steps = size_expr(count)
    entries = batch * tokens * width * steps
    calls = SETUP_CALLS + STEP_CALLS * (steps - 1)
    return OpCost(work="reduction", flops=3 * entries, dims=(entries,), calls=calls)


def example(
    generator: torch.Generator, dtype: torch.dtype, *, batch: int, tokens: int, width: int
) -> tuple[Tensor, int, Tensor, Tensor | None]:
    """Arguments of one call: small whole numbers (ties), normal numbers, padding or none."""
    share, whole, shared, padded = torch.rand(4, generator=generator).tolist()
    x = torch.randn(batch, tokens, width, generator=generator)
    if whole < 0.5:
        x = x.round()
    rows = 1 if shared < 0.3 else batch
    first = torch.randint(0, max(1, tokens), (rows,), generator=generator)
    sizes = torch.randint(0, 3, (batch, tokens), generator=generator).float()
    count = tokens if share > 0.8 else int(share * (tokens + 1))
    return x.to(dtype), count, first, sizes if padded < 0.5 else None


OPERATOR = Operator(
    name="farthest_point",
    schema="(Tensor x, SymInt count, Tensor first, Tensor? sizes=None) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"batch": range(4), "tokens": range(40), "width": range(1, 50)},
    dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
)
