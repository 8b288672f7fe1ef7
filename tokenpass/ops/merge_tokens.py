"""Tokens that share a segment become one, their weighted sum: ToMe's merging as one call.

Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023), section 3: with shares of
size / (sum of sizes in the segment) the sum is the mean over all tokens that were merged so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.gather_tokens import check_rows
from tokenpass.ops.operator import Backward, Operator, size_expr, sum_dtype
from tokenpass.shapes import Float, Int

CALLS = 15
"""Calls into torch that the reference makes in float32; a test counts them."""


def merge_tokens(
    x: Float[Tensor, "batch tokens width"],
    segment: Int[Tensor, "batch tokens"],
    shares: Float[Tensor, "batch tokens"],
    count: int,
) -> Float[Tensor, "batch count width"]:
    """`out[b, s] = sum of shares[b, i] x[b, i] over the tokens i with segment[b, i] = s`.

    Sums in float32 (float64 for float64), rounded once to the dtype of `x`, in rising order of the
    tokens: the same call gives the same bits on every device, and no atomic addition is made. A
    segment without tokens is zero. `segment` is int64 in `0 .. count - 1`; an entry outside raises
    on the CPU, and belongs to no segment in a GPU kernel. Shares are as given, not normalised, and
    a share of zero does not hide a NaN. Gradients: in `x` and in `shares`.
    """
    return torch.ops.tokenpass.merge_tokens.default(x, segment, shares, count)


def reference(x: Tensor, segment: Tensor, shares: Tensor, count: int) -> Tensor:
    """`merge_tokens` in plain torch: tokens sorted by segment, then one bag for each segment."""
    check(x, segment, shares, count)
    batch, tokens, width = x.shape
    if batch * tokens * count == 0:
        return x.new_zeros(batch, count, width)
    require_segments(segment, count)
    first = torch.arange(0, batch * count, count, device=x.device)[:, None]
    ranked, order = torch.sort((segment + first).view(-1), stable=True)
    starts = torch.searchsorted(ranked, torch.arange(batch * count, device=x.device))
    rows = x.reshape(batch * tokens, width).to(sum_dtype(x))
    weights = shares.to(rows.dtype).reshape(-1).index_select(0, order)
    merged = torch.nn.functional.embedding_bag(
        order, rows, starts, mode="sum", per_sample_weights=weights
    )
    return merged.view(batch, count, width).to(x.dtype)


def require_segments(segment: Tensor, count: int) -> None:
    """Raises IndexError where a segment lies outside `0 .. count - 1`; reads values on the CPU."""
    if segment.device.type != "cpu":
        return
    lowest, highest = map(int, torch.aminmax(segment))
    if lowest < 0 or highest >= count:
        raise IndexError(
            f"tokenpass::merge_tokens: segments must lie in 0 .. {count - 1}, "
            f"got {lowest} .. {highest}"
        )


def check(x: Tensor, segment: Tensor, shares: Tensor, count: int) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    check_rows("merge_tokens", x)
    wanted = x.shape[:2]
    if segment.dtype != torch.int64 or segment.shape != wanted:
        raise ValueError(
            f"tokenpass::merge_tokens: segment must be int64 {tuple(wanted)}, "
            f"got {segment.dtype} {tuple(segment.shape)}"
        )
    if not shares.is_floating_point() or shares.shape != wanted:
        raise ValueError(
            f"tokenpass::merge_tokens: shares must be floating point {tuple(wanted)}, "
            f"got {shares.dtype} {tuple(shares.shape)}"
        )


def fake(x: Tensor, segment: Tensor, shares: Tensor, count: int) -> Tensor:
    """Shape and dtype of the output, [batch, count, width]."""
    check(x, segment, shares, count)
    return x.new_empty(x.shape[0], count, x.shape[2])


def keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """What the gradients need of a call."""
    x, segment, shares, _ = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, segment, shares)
    ctx.dtype = x.dtype


def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
    """A token gets its segment's gradient times its share; a share the product of both rows."""
    x, segment, shares = ctx.saved_tensors
    places = segment[..., None].expand(-1, -1, grad.shape[2])
    mine = torch.gather(grad, 1, places).to(sum_dtype(grad))
    of_x = of_shares = None
    if ctx.needs_input_grad[0]:
        of_x = (mine * shares[..., None]).to(ctx.dtype)
    if ctx.needs_input_grad[2]:
        of_shares = (mine * x).sum(-1).to(shares.dtype)
    return of_x, None, of_shares, None


def cost(x: Tensor, segment: Tensor, shares: Tensor, count: int) -> OpCost:
    """A multiplication and an addition for each entry of `x`."""
    batch, tokens, width = (size_expr(size) for size in x.shape)
    entries = batch * tokens * width
    return OpCost(work="reduction", flops=2 * entries, dims=(entries,), calls=CALLS)


def example(
    generator: torch.Generator, dtype: torch.dtype, *, batch: int, tokens: int, width: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Arguments of one call: means over segments in no order, some without tokens."""
    share = float(torch.rand((), generator=generator))
    x = torch.randn(batch, tokens, width, generator=generator).to(dtype)
    count = 1 + int(share * tokens)
    segment = torch.randint(0, count, (batch, tokens), generator=generator)
    sizes = torch.randint(1, 5, (batch, tokens), generator=generator).to(sum_dtype(x))
    total = sizes.new_zeros(batch, count).scatter_add(1, segment, sizes)
    return x, segment, sizes / torch.gather(total, 1, segment), count


OPERATOR = Operator(
    name="merge_tokens",
    schema="(Tensor x, Tensor segment, Tensor shares, SymInt count) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"batch": range(4), "tokens": range(40), "width": range(1, 50)},
    dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    backward=Backward(keep_for_gradient, gradient, inputs=(0, 2)),
)
