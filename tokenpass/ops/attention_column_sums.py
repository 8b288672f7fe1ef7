"""How much attention every key receives over all queries, with no matrix of scores stored.

The score of methods without a class token (VisionZip's and VisionDrop's column mean, Yang et al.,
2024; the first step of Zero-TPrune's ranking, Wang et al., 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.attention_row import broadcasts, check_heads, example_heads, safe_softmax
from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator, size_expr, sum_dtype
from tokenpass.shapes import Float

TILE = 1 << 21
"""Scores that the reference holds at once (elements, 8 MiB in float32)."""

CALLS = 24
"""Calls into torch that the reference makes in one tile in float32; a test counts them."""


def attention_column_sums(
    query: Float[Tensor, "batch heads queries width"],
    keys: Float[Tensor, "batch kv_heads tokens width"],
    bias: Float[Tensor, "#batch #heads #queries tokens"] | None = None,
    *,
    causal: bool = False,
    scale: float,
) -> Float[Tensor, "batch heads tokens"]:
    """`sum over queries q of softmax over tokens of (query[q] . keys[token] scale + bias)`.

    In float32 (float64 for float64). Head h reads key head `h // (heads / kv_heads)`. A bias of
    -inf hides a key; with `causal` query i sees keys 0 .. i alone, counted from the first as
    `scaled_dot_product_attention` counts. A query that sees no key adds nothing. A query with NaN
    among its scores makes NaN of the sums of all keys that it sees; those that `causal` alone hides
    from it are then unspecified. No gradient: scores choose.
    """
    call = torch.ops.tokenpass.attention_column_sums.default
    return call(query, keys, bias, causal, scale)


def reference(
    query: Tensor, keys: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """`attention_column_sums` in plain torch, tiles of queries one after the other."""
    check(query, keys, bias, causal, scale)
    batch, heads, queries, width = query.shape
    kv_heads, tokens = keys.shape[1:3]
    dtype = sum_dtype(query)
    sums = query.new_zeros((batch, heads, tokens), dtype=dtype)
    if sums.numel() * queries == 0:
        return sums
    target = keys.detach().to(dtype).mT
    grouped = query.detach().to(dtype).view(batch, kv_heads, heads // kv_heads, queries, width)
    step = max(1, TILE // sums.numel())
    for first in range(0, queries, step):
        rows = grouped.narrow(3, first, min(step, queries - first))
        scores = torch.matmul(rows, target[:, :, None]).mul_(scale)
        scores = scores.view(batch, heads, -1, tokens)
        if bias is not None:
            shared = bias.shape[2] == 1
            part = bias if shared else bias.narrow(2, first, scores.shape[2])
            scores += part.detach().to(dtype)
        if causal:
            scores.masked_fill_(_future(first, scores), -torch.inf)
        sums += safe_softmax(scores).sum(2)
    return sums


def _future(first: int, scores: Tensor) -> Tensor:
    """Where keys come after queries, bool [rows, tokens], for the rows from `first` on."""
    rows, tokens = scores.shape[2:]
    place = torch.arange(first, first + rows, device=scores.device)
    return torch.arange(tokens, device=scores.device) > place[:, None]


def check(query: Tensor, keys: Tensor, bias: Tensor | None, causal: bool, scale: float) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    check_heads("attention_column_sums", query, keys)
    wanted = (*query.shape[:3], keys.shape[2])
    if bias is not None and not broadcasts(bias, wanted, last=1):
        raise ValueError(
            f"tokenpass::attention_column_sums: bias must be floating point {wanted}, the first "
            f"three sizes or 1; got {bias.dtype} {tuple(bias.shape)}"
        )


def fake(query: Tensor, keys: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Shape and dtype of the output, [batch, heads, tokens]."""
    check(query, keys, bias, causal, scale)
    return query.new_empty((*query.shape[:2], keys.shape[2]), dtype=sum_dtype(query))


def cost(query: Tensor, keys: Tensor, bias: Tensor | None, causal: bool, scale: float) -> OpCost:
    """All queries by all keys (the reference computes hidden pairs too), softmax and sums."""
    batch, heads, queries, width = (size_expr(size) for size in query.shape)
    tokens = size_expr(keys.shape[2])
    flops = batch * heads * queries * tokens * (2 * width + 6)
    dims = (batch * heads, queries, tokens, width)
    return OpCost(work="attention", flops=flops, dims=dims, calls=CALLS)


def example(
    generator: torch.Generator, dtype: torch.dtype, *, batch: int, tokens: int, width: int
) -> tuple[Tensor, Tensor, Tensor | None, bool, float]:
    """Arguments of one call: grouped heads, more or fewer queries than keys, hidden rows."""
    kv_heads, group = torch.randint(1, 3, (2,), generator=generator).tolist()
    share, scale, *chances = torch.rand(7, generator=generator).tolist()
    with_bias, of_batch, of_heads, of_queries, causal = (chance < 0.5 for chance in chances)
    queries = 1 + tokens // 2 + int(share * tokens)
    sizes = (batch, kv_heads, group, queries, tokens, width)
    query, keys = example_heads(generator, dtype, sizes)
    shape = (batch if of_batch else 1, kv_heads * group if of_heads else 1)
    shape = (*shape, queries if of_queries else 1, tokens)
    bias = torch.randn(shape, generator=generator)
    bias[torch.rand(shape, generator=generator) < 0.3] = -torch.inf
    nothing = torch.rand(shape[:3], generator=generator) < 0.1
    bias.masked_fill_(nothing[..., None], -torch.inf)
    return query, keys, bias if with_bias else None, causal, 0.1 + 0.2 * scale


OPERATOR = Operator(
    name="attention_column_sums",
    schema="(Tensor query, Tensor keys, Tensor? bias, bool causal, float scale) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"batch": range(4), "tokens": range(40), "width": range(1, 50)},
    dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
)
