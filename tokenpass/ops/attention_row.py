"""The attention that one query pays to every key: a row of probabilities without the others.

What class-token scorers read (EViT, Liang et al., 2022; FastV, Chen et al., 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator, size_expr, sum_dtype
from tokenpass.shapes import Float

CALLS = 18
"""Calls into torch that the reference makes with a bias in float32; a test counts them."""


def attention_row(
    query: Float[Tensor, "batch heads 1 width"],
    keys: Float[Tensor, "batch kv_heads tokens width"],
    bias: Float[Tensor, "#batch #heads tokens"] | None = None,
    *,
    scale: float,
) -> Float[Tensor, "batch heads tokens"]:
    """`softmax over tokens of (query . keys[token] scale + bias[token])`, in float32 or more.

    Head h reads key head `h // (heads / kv_heads)`. A bias of -inf hides a key (padding); a row
    with every key hidden is zero, as in `scaled_dot_product_attention`. NaN in a row's scores makes
    that row NaN. No gradient: scores choose.
    """
    return torch.ops.tokenpass.attention_row.default(query, keys, bias, scale)


def reference(query: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """`attention_row` in plain torch; grouped heads read their keys where they are."""
    check(query, keys, bias, scale)
    batch, heads, _, width = query.shape
    kv_heads, tokens = keys.shape[1:3]
    dtype = sum_dtype(query)
    rows = query.detach().to(dtype).reshape(batch, kv_heads, heads // kv_heads, width)
    scores = torch.matmul(rows, keys.detach().to(dtype).mT).mul_(scale)
    scores = scores.view(batch, heads, tokens)
    if bias is not None:
        scores = scores + bias.detach().to(dtype)
    return safe_softmax(scores)


def safe_softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; zeros where every score is -inf."""
    hidden = (scores == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(scores, -1).masked_fill_(hidden, 0.0)


def check(query: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    check_heads("attention_row", query, keys)
    if query.shape[2] != 1:
        raise ValueError(
            f"tokenpass::attention_row: one query is asked for, got {query.shape[2]} in "
            f"{tuple(query.shape)}; narrow the third dimension to one"
        )
    wanted = (query.shape[0], query.shape[1], keys.shape[2])
    if bias is not None and not broadcasts(bias, wanted, last=1):
        raise ValueError(
            f"tokenpass::attention_row: bias must be floating point {wanted}, the first two sizes "
            f"or 1; got {bias.dtype} {tuple(bias.shape)}"
        )


def check_heads(operator: str, query: Tensor, keys: Tensor) -> None:
    """Raises ValueError unless both are [batch, heads, tokens, width], heads of keys grouped."""
    fits = query.dim() == 4 and keys.dim() == 4 and query.is_floating_point()
    fits = fits and query.dtype == keys.dtype and query.shape[0] == keys.shape[0]
    fits = fits and query.shape[3] == keys.shape[3] and keys.shape[1] > 0
    if not fits or query.shape[1] % keys.shape[1]:
        raise ValueError(
            f"tokenpass::{operator}: query [batch, heads, queries, width] and keys [batch, "
            "kv_heads, tokens, width] must be floating point of one dtype, heads a multiple of "
            f"kv_heads; got {query.dtype} {tuple(query.shape)}, {keys.dtype} {tuple(keys.shape)}"
        )


def broadcasts(bias: Tensor, wanted: tuple[int, ...], last: int) -> bool:
    """Whether a floating-point bias has the shape wanted, 1 allowed in all but the `last` ones."""
    if bias.dim() != len(wanted) or not bias.is_floating_point():
        return False
    free = len(wanted) - last
    return all(
        have == want or (at < free and have == 1)
        for at, (have, want) in enumerate(zip(bias.shape, wanted, strict=True))
    )


def fake(query: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Shape and dtype of the output, [batch, heads, tokens]."""
    check(query, keys, bias, scale)
    return query.new_empty((*query.shape[:2], keys.shape[2]), dtype=sum_dtype(query))


def cost(query: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> OpCost:
    """A product of one row with all keys, and a softmax: 2 width + 5 operations for each pair."""
    batch, kv_heads, tokens, width = (size_expr(size) for size in keys.shape)
    group = size_expr(query.shape[1] // keys.shape[1])
    flops = batch * kv_heads * group * tokens * (2 * width + 5)
    return OpCost(
        work="bmm", flops=flops, dims=(batch * kv_heads, group, tokens, width), calls=CALLS
    )


def example(
    generator: torch.Generator, dtype: torch.dtype, *, batch: int, tokens: int, width: int
) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """Arguments of one call: grouped heads, padding or none, at times a row with nothing left."""
    kv_heads, group = torch.randint(1, 5, (2,), generator=generator).tolist()
    scale, *chances = torch.rand(4, generator=generator).tolist()
    with_bias, of_heads, of_batch = (chance < 0.5 for chance in chances)
    query, keys = example_heads(generator, dtype, (batch, kv_heads, group, 1, tokens, width))
    rows = (batch if of_batch else 1, kv_heads * group if of_heads else 1, tokens)
    bias = torch.randn(rows, generator=generator)
    bias[torch.rand(rows, generator=generator) < 0.3] = -torch.inf
    bias[:, :1].masked_fill_(torch.rand(rows[0], 1, 1, generator=generator) < 0.2, -torch.inf)
    return query, keys, bias if with_bias else None, 0.1 + 0.2 * scale


def example_heads(
    generator: torch.Generator, dtype: torch.dtype, sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Query and keys for (batch, kv_heads, group, queries, tokens, width)."""
    batch, kv_heads, group, queries, tokens, width = sizes
    query = torch.randn(batch, kv_heads * group, queries, width, generator=generator)
    keys = torch.randn(batch, kv_heads, tokens, width, generator=generator)
    return query.to(dtype), keys.to(dtype)


OPERATOR = Operator(
    name="attention_row",
    schema="(Tensor query, Tensor keys, Tensor? bias, float scale) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"batch": range(4), "tokens": range(40), "width": range(1, 50)},
    dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
)
