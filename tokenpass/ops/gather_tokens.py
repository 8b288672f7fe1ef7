"""Some tokens of every sample, in the order that an index names: what pruning leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Backward, Operator, size_expr, sum_dtype
from tokenpass.shapes import Float, Int

CALLS = 3
"""Calls into torch that the reference makes for an index per sample; a test counts them."""


def gather_tokens(
    x: Float[Tensor, "batch tokens width"], index: Int[Tensor, "#batch count"]
) -> Float[Tensor, "batch count width"]:
    """`out[b, j] = x[b, index[b, j]]`, an exact copy (NaN included) in the dtype of `x`.

    `index` is int64; with one row it serves every sample. An entry may be named any number of
    times. One outside `0 .. tokens - 1` raises on the CPU and gives zeros in a GPU kernel, which
    cannot raise. The gradient in `x` sums, in float32 or more, over the times an entry was named.
    """
    return torch.ops.tokenpass.gather_tokens.default(x, index)


def reference(x: Tensor, index: Tensor) -> Tensor:
    """`gather_tokens` in plain torch."""
    check(x, index)
    return torch.gather(x, 1, _over_width(index, x))


def _over_width(index: Tensor, x: Tensor) -> Tensor:
    """The index expanded to `[batch, count, width]` of x."""
    return index[..., None].expand(x.shape[0], -1, x.shape[2])


def check(x: Tensor, index: Tensor) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    check_rows("gather_tokens", x)
    if index.dtype != torch.int64 or index.dim() != 2 or index.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"tokenpass::gather_tokens: index must be int64 [{x.shape[0]} or 1, count], "
            f"got {index.dtype} {tuple(index.shape)}"
        )


def check_rows(operator: str, x: Tensor) -> None:
    """Raises ValueError unless `x` is floating point [batch, tokens, width]."""
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(
            f"tokenpass::{operator}: x must be floating point [batch, tokens, width], "
            f"got {x.dtype} {tuple(x.shape)}"
        )


def fake(x: Tensor, index: Tensor) -> Tensor:
    """Shape and dtype of the output, [batch, count, width]."""
    check(x, index)
    return x.new_empty(x.shape[0], index.shape[1], x.shape[2])


def keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """What the gradient needs of a call."""
    x, index = inputs
    ctx.save_for_backward(index)
    ctx.tokens = x.shape[1]


def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    """Every row of the gradient goes back to the token that it was read from."""
    (index,) = ctx.saved_tensors
    whole = grad.new_zeros((grad.shape[0], ctx.tokens, grad.shape[2]), dtype=sum_dtype(grad))
    summed = whole.scatter_add(1, _over_width(index, grad), grad.to(whole.dtype))
    return summed.to(grad.dtype), None


def cost(x: Tensor, index: Tensor) -> OpCost:
    """One read and one write for each entry that is kept."""
    entries = size_expr(x.shape[0]) * size_expr(index.shape[1]) * size_expr(x.shape[2])
    return OpCost(work="gather", flops=entries, dims=(entries,), calls=CALLS)


def example(
    generator: torch.Generator, dtype: torch.dtype, *, batch: int, tokens: int, width: int
) -> tuple[Tensor, Tensor]:
    """Arguments of one call: any number of entries, some named twice, one index for all or not."""
    share, shared = torch.rand(2, generator=generator).tolist()
    x = torch.randn(batch, tokens, width, generator=generator).to(dtype)
    count = 1 + int(share * tokens) if tokens else 0
    rows = 1 if shared < 0.3 else batch
    return x, torch.randint(0, max(1, tokens), (rows, count), generator=generator)


OPERATOR = Operator(
    name="gather_tokens",
    schema="(Tensor x, Tensor index) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"batch": range(4), "tokens": range(40), "width": range(1, 50)},
    dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    backward=Backward(keep_for_gradient, gradient, inputs=(0,)),
)
