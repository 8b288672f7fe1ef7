"""One small encoder, its attention in many spellings: what users write instead of a library's."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.common import HEADS, LAYERS, WIDTH, Example, ready

TOKENS, INPUT = 18, 12
Attend = Callable[["Attention", Tensor], Tensor]


class Attention(nn.Module):
    """Projections of one attention; `attend` says how they are used."""

    def __init__(self, attend: Attend, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.attend, self.kv_heads, self.width = attend, kv_heads, WIDTH // HEADS
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, kv_heads * self.width) for _ in range(2))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(HEADS, 32, 32))
        self.distance = nn.Embedding(63, HEADS)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, `[batch, heads, tokens, width]` each."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        return tuple(p.unflatten(-1, (-1, self.width)).transpose(1, 2) for p in (q, k, v))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(self, x))


def merged(mixed: Tensor) -> Tensor:
    """Heads side by side again."""
    return mixed.transpose(1, 2).flatten(2)


def fused(a: Attention, x: Tensor) -> Tensor:
    return merged(F.scaled_dot_product_attention(*a.heads(x)))


def viewed(a: Attention, x: Tensor) -> Tensor:
    """Heads side by side by `view`, which fused attention's layout allows."""
    return F.scaled_dot_product_attention(*a.heads(x)).permute(0, 2, 1, 3).view(x.shape)


def einsum(a: Attention, x: Tensor) -> Tensor:
    q, k, v = (p.unflatten(-1, (HEADS, -1)) for p in (a.q(x), a.k(x), a.v(x)))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(a.width)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)


def batched_heads(a: Attention, x: Tensor) -> Tensor:
    """Heads folded into the batch, products by `bmm` and `baddbmm`."""
    batch, tokens, _ = x.shape
    q, k, v = (p.reshape(batch * HEADS, tokens, a.width) for p in a.heads(x))
    scores = torch.baddbmm(x.new_zeros(1, 1, 1), q, k.transpose(1, 2), alpha=a.width**-0.5)
    mixed = torch.bmm(F.softmax(scores, dim=-1), v)
    return merged(mixed.view(batch, HEADS, tokens, a.width))


def flat_linears(a: Attention, x: Tensor) -> Tensor:
    """Projections of a matrix `[batch x tokens, width]`."""
    batch, tokens, _ = x.shape
    flat = x.reshape(-1, WIDTH)
    q, k, v = (p(flat).view(batch, tokens, HEADS, -1).transpose(1, 2) for p in (a.q, a.k, a.v))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).reshape(batch * tokens, WIDTH).view(batch, tokens, WIDTH)


def alibi(a: Attention, x: Tensor) -> Tensor:
    q, k, v = a.heads(x)
    place = torch.arange(x.shape[1])
    slope = 2.0 ** -torch.arange(1, HEADS + 1, dtype=x.dtype)
    bias = -(place[:, None] - place[None, :]).abs() * slope[:, None, None]
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))


def table_bias(a: Attention, x: Tensor) -> Tensor:
    q, k, v = a.heads(x)
    bias = a.bias[:, : x.shape[1], : x.shape[1]]
    scores = q @ k.transpose(-1, -2) * a.width**-0.5 + bias
    return merged(scores.softmax(-1) @ v)


def relative_bias(a: Attention, x: Tensor) -> Tensor:
    """T5's: an embedding of clipped distances."""
    q, k, v = a.heads(x)
    place = torch.arange(x.shape[1])
    distance = (place[None, :] - place[:, None]).clamp(-31, 31) + 31
    bias = a.distance(distance).permute(2, 0, 1)[None]
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0))


def content_bias(a: Attention, x: Tensor) -> Tensor:
    """What a key adds to its scores comes from its value, and no query looks ahead."""
    q, k, v = a.heads(x)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    bias = F.softplus(v.sum(-1))[:, :, None].expand(-1, -1, x.shape[1], -1)
    bias = bias.masked_fill(later, torch.finfo(x.dtype).min)
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))


def written_scores_bias(a: Attention, x: Tensor) -> Tensor:
    """The same, written out, and with windows."""
    q, k, v = a.heads(x)
    place = torch.arange(x.shape[1])
    near = (place[:, None] - place[None, :]).abs() < 6
    scores = q @ k.mT / math.sqrt(a.width) + F.softplus(v.sum(-1))[:, :, None]
    return merged(scores.masked_fill(~near, -1e9).softmax(-1) @ v)


def rotary_tables(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[tokens, width]`."""
    rate = 1.0 / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(tokens, dtype=torch.float64), rate)
    return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def rotary(a: Attention, x: Tensor) -> Tensor:
    q, k, v = a.heads(x)
    cos, sin = rotary_tables(x.shape[1], a.width)
    q, k = turned(q, cos, sin), turned(k, cos, sin)
    return merged(F.scaled_dot_product_attention(q, k, v))


def partial_rotary(a: Attention, x: Tensor) -> Tensor:
    q, k, v = a.heads(x)
    half = a.width // 2
    cos, sin = rotary_tables(x.shape[1], half)
    q, k = (torch.cat([turned(p[..., :half], cos, sin), p[..., half:]], -1) for p in (q, k))
    return merged(F.scaled_dot_product_attention(q, k, v))


def complex_rotary(a: Attention, x: Tensor) -> Tensor:
    """Llama's own spelling: pairs of channels as interleaved halves."""
    q, k, v = a.heads(x)
    cos, sin = (t[:, : a.width // 2] for t in rotary_tables(x.shape[1], a.width))

    def turn(p: Tensor) -> Tensor:
        even, odd = p[..., 0::2], p[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    return merged(F.scaled_dot_product_attention(turn(q), turn(k), v))


def m_rope(a: Attention, x: Tensor) -> Tensor:
    """Three kinds of positions (time, row, column), each in its part of the channels."""
    q, k, v = a.heads(x)
    place = torch.arange(x.shape[1])
    kinds = torch.stack([place // 9, place // 3 % 3, place % 3])
    cos, sin = rotary_tables(32, a.width)
    cos, sin = (table[kinds] for table in (cos, sin))  # [3, tokens, width]
    parts = [2, 3, 3]
    cos, sin = (
        torch.cat([p[i] for i, p in enumerate(table.split(parts, -1))], -1) for table in (cos, sin)
    )
    return merged(F.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v))


def grouped_queries(a: Attention, x: Tensor) -> Tensor:
    q, k, v = a.heads(x)
    return merged(F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


def repeated_keys(a: Attention, x: Tensor) -> Tensor:
    q, k, v = a.heads(x)
    k, v = (p.repeat_interleave(HEADS // a.kv_heads, 1) for p in (k, v))
    return merged(F.scaled_dot_product_attention(q, k, v))


def sliding_window(a: Attention, x: Tensor) -> Tensor:
    q, k, v = a.heads(x)
    place = torch.arange(x.shape[1])
    near = (place[:, None] - place[None, :]).abs() < 6
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=near))


def cosine_scores(a: Attention, x: Tensor) -> Tensor:
    """Swin v2's: unit queries and keys."""
    q, k, v = a.heads(x)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * 4
    return merged(F.softmax(scores, -1) @ v)


def subtracted_maximum(a: Attention, x: Tensor) -> Tensor:
    """A softmax written out."""
    q, k, v = a.heads(x)
    scores = q @ k.mT * a.width**-0.5
    power = (scores - scores.amax(-1, keepdim=True)).exp()
    return merged(power / power.sum(-1, keepdim=True) @ v)


class Block(nn.Module):
    """Attention and MLP; `order` says how they meet the residual stream."""

    def __init__(self, attend: Attend, order: str = "pre", kv_heads: int = HEADS) -> None:
        super().__init__()
        self.order, self.attention = order, Attention(attend, kv_heads)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.gate = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 48)
        self.down = nn.Linear(48, WIDTH)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "parallel":
            same = self.first(x)
            return x + self.attention(same) + self.mlp(same)
        if self.order == "post":
            x = self.first(x + self.attention(x))
            return self.second(x + self.mlp(x))
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Encoder(nn.Module):
    """Blocks over a linear embedding; the mean of the tokens is classified."""

    def __init__(self, blocks: list[nn.Module], read: str = "mean") -> None:
        super().__init__()
        self.embed, self.read = nn.Linear(INPUT, WIDTH), read
        self.place = nn.Parameter(torch.randn(32, WIDTH))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.read == "mean":
            x = x.mean(1)
        elif self.read == "max":
            x = x.amax(1)
        elif self.read in ("first", "last"):
            x = x[:, 0] if self.read == "first" else x[:, -1]
        return self.head(x)


def example(model: nn.Module, scale: float = 1.5) -> Example:
    return ready(model, scale), {"x": torch.randn(2, TOKENS, INPUT, dtype=torch.float64)}


def encoder(
    attend: Attend, order: str = "pre", kv_heads: int = HEADS, read: str = "mean"
) -> Example:
    return example(Encoder([Block(attend, order, kv_heads) for _ in range(LAYERS)], read))


def written_einsum() -> Example:
    return encoder(einsum)


def written_viewed_heads() -> Example:
    return encoder(viewed)


def written_batched_heads() -> Example:
    return encoder(batched_heads)


def written_flat_linears() -> Example:
    return encoder(flat_linears)


def written_parallel() -> Example:
    return encoder(fused, "parallel")


def written_post_norm() -> Example:
    return encoder(fused, "post", read="first")


def written_all_tokens() -> Example:
    return encoder(fused, read="all")


def written_max_pooling() -> Example:
    return encoder(fused, read="max")


def written_alibi() -> Example:
    return encoder(alibi)


def written_table_bias() -> Example:
    return encoder(table_bias)


def written_relative_bias() -> Example:
    return encoder(relative_bias)


def written_content_bias() -> Example:
    return encoder(content_bias, read="last")


def written_content_scores() -> Example:
    return encoder(written_scores_bias, read="first")


def written_rotary() -> Example:
    return encoder(rotary)


def written_partial_rotary() -> Example:
    return encoder(partial_rotary)


def written_complex_rotary() -> Example:
    return encoder(complex_rotary)


def written_m_rope() -> Example:
    return encoder(m_rope)


def written_grouped_queries() -> Example:
    return encoder(grouped_queries, kv_heads=2)


def written_repeated_keys() -> Example:
    return encoder(repeated_keys, kv_heads=2)


def written_sliding_window() -> Example:
    return encoder(sliding_window)


def written_cosine_scores() -> Example:
    return encoder(cosine_scores)


def written_softmax() -> Example:
    return encoder(subtracted_maximum)


FAMILIES = (
    written_einsum,
    written_viewed_heads,
    written_batched_heads,
    written_flat_linears,
    written_parallel,
    written_post_norm,
    written_all_tokens,
    written_max_pooling,
    written_alibi,
    written_table_bias,
    written_relative_bias,
    written_content_bias,
    written_content_scores,
    written_rotary,
    written_partial_rotary,
    written_complex_rotary,
    written_m_rope,
    written_grouped_queries,
    written_repeated_keys,
    written_sliding_window,
    written_cosine_scores,
    written_softmax,
)
