"""The model that a recipe describes, and the inputs of its call."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.recipes import Recipe, consistent
from tests.models.zoo.common import ready

INPUT, CLASSES = 6, 5

# what attention sees ---------------------------------------------------------------------------


def bias_of(made: Recipe, tokens: int, mask: Tensor | None) -> Tensor | None:
    """A mask for all blocks, `[tokens, tokens]` or `[batch, 1, tokens, tokens]`: bool or additive.

    Where padding would leave a query without any key (a padded query of a causal model), the query
    sees all of them, as libraries do it: what such a query gives is of no use to anybody.
    """
    place = torch.arange(tokens)
    near = torch.ones(tokens, tokens, dtype=torch.bool)
    if made.window:
        near = (place[:, None] - place[None, :]).abs() < made.window
    if made.causal == "mask":
        near = near & (place[:, None] >= place[None, :])
    plain = not made.window and made.causal != "mask"
    if mask is None:
        return None if plain else near
    seen = mask[:, None, None, :].bool()
    if made.padding == "bool" and plain:
        return seen
    if not plain:
        seen = seen & near
        seen = seen | ~seen.any(-1, keepdim=True)
    # a query may lose the one key in its window: what it sees then is told by finite scores alone
    lowest = -1e4 if made.window else torch.finfo(torch.float64).min
    return torch.zeros(1, dtype=torch.float64).masked_fill(~seen, lowest)


def slopes(heads: int) -> Tensor:
    """ALiBi's, `[heads, 1, 1]`."""
    return 2.0 ** -torch.arange(1, heads + 1, dtype=torch.float64)[:, None, None]


def turned(x: Tensor) -> Tensor:
    """Rotary positions of `[batch, heads, tokens, head_dim]`."""
    tokens, width = x.shape[-2:]
    rate = 1.0 / 100 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(tokens, dtype=torch.float64), rate)
    angle = torch.cat([angle, angle], -1)
    left, right = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()


# the model -------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """Written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def norm(made: Recipe) -> nn.Module:
    return RMSNorm(made.width) if made.rms else nn.LayerNorm(made.width)


class Attention(nn.Module):
    """Self-attention in one of the spellings; tokens or samples come first in `x`."""

    def __init__(self, made: Recipe) -> None:
        super().__init__()
        self.made, self.head_dim = made, made.width // made.heads
        self.shared = made.spelling in ("grouped", "repeated")
        kv = made.width // 2 if self.shared else made.width
        self.q, self.out = (nn.Linear(made.width, made.width) for _ in range(2))
        self.k, self.v = (nn.Linear(made.width, kv) for _ in range(2))
        if made.position == "table":
            self.table = nn.Parameter(torch.randn(made.heads, made.tokens, made.tokens))

    def project(self, linear: nn.Module, x: Tensor) -> Tensor:
        if not self.made.flat:
            return linear(x)
        return linear(x.reshape(-1, x.shape[-1])).view(x.shape[0], x.shape[1], -1)

    def heads(self, x: Tensor) -> Tensor:
        """`[batch, heads, tokens, head_dim]`."""
        apart = x.unflatten(-1, (-1, self.head_dim))
        return apart.permute(1, 2, 0, 3) if self.made.tokens_first else apart.transpose(1, 2)

    def together(self, x: Tensor) -> Tensor:
        """Heads side by side again."""
        order = (2, 0, 1, 3) if self.made.tokens_first else (0, 2, 1, 3)
        return x.permute(order).flatten(2)

    def bias(self, bias: Tensor | None, tokens: int) -> Tensor | None:
        """The blocks' mask with what this spelling of positions adds to it."""
        if self.made.position == "table":
            own = self.table
        elif self.made.position == "alibi":
            place = torch.arange(tokens)
            own = -(place[:, None] - place[None, :]).abs() * slopes(self.made.heads)
        else:
            return bias
        if bias is None:
            return own
        return own.masked_fill(~bias, -1e9) if bias.dtype == torch.bool else own + bias

    def scores(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return scores
        if bias.dtype == torch.bool:
            return scores.masked_fill(~bias, -1e9)
        return scores + bias

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of `[batch, heads, tokens, head_dim]`."""
        made, scale = self.made, 1 / math.sqrt(self.head_dim)
        if self.shared and made.spelling == "repeated":
            k, v = (p.repeat_interleave(made.heads // k.shape[1], 1) for p in (k, v))
        if made.spelling in ("fused", "grouped", "repeated"):
            flag, shared = made.causal == "flag", made.spelling == "grouped"
            return F.scaled_dot_product_attention(q, k, v, bias, 0.0, flag, enable_gqa=shared)
        if made.spelling == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * scale
            return torch.einsum("bhij,bhjd->bhid", self.scores(scores, bias).softmax(-1), v)
        if made.spelling == "bmm":
            q, k, v = (p.flatten(0, 1) for p in (q, k, v))
            scores = torch.bmm(q * scale, k.transpose(1, 2))
            split = (-1, made.heads)
            if bias is not None:
                scores = self.scores(scores.unflatten(0, split), bias).flatten(0, 1)
            return torch.bmm(scores.softmax(-1), v).unflatten(0, split)
        scores = self.scores(q @ k.transpose(-1, -2) * scale, bias)
        return scores.softmax(-1) @ v

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (self.heads(self.project(p, x)) for p in (self.q, self.k, self.v))
        if self.made.position == "rotary":
            q, k = turned(q), turned(k)
        mixed = self.together(self.mix(q, k, v, self.bias(bias, q.shape[-2])))
        return self.project(self.out, mixed)


class TorchAttention(nn.Module):
    """`nn.MultiheadAttention` under the same call."""

    def __init__(self, made: Recipe) -> None:
        super().__init__()
        self.made = made
        self.inner = nn.MultiheadAttention(
            made.width, made.heads, batch_first=not made.tokens_first
        )

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        hidden = None
        if bias is not None and bias.dim() == 4:
            if bias.shape[-2] == 1:
                bias, hidden = None, bias[:, 0, 0]
                hidden = ~hidden if hidden.dtype == torch.bool else hidden
            else:
                bias = bias.expand(-1, self.made.heads, -1, -1).flatten(0, 1)
        elif bias is not None:
            bias = ~bias
        return self.inner(x, x, x, hidden, False, bias)[0]


class Block(nn.Module):
    """Attention and MLP; `order` says how they meet the residual stream."""

    def __init__(self, made: Recipe) -> None:
        super().__init__()
        self.made = made
        self.attention = TorchAttention(made) if made.spelling == "torch" else Attention(made)
        self.first, self.second = norm(made), norm(made)
        self.up, self.down = nn.Linear(made.width, 20), nn.Linear(20, made.width)
        if made.gated:
            self.gate = nn.Linear(made.width, 20)

    def mlp(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1]) if self.made.flat else x
        hidden = F.silu(self.gate(x)) * self.up(x) if self.made.gated else F.gelu(self.up(x))
        return self.down(hidden).view(shape)

    def attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        out = self.attention(x, bias)
        if self.made.writes == "channels":
            half = out[..., : self.made.width // 2]
            half.mul_(0.5)
        elif self.made.writes == "row":
            row = out[0] if self.made.tokens_first else out[:, 0]
            row.add_(1.0)
        return out

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return branch.add_(x) if self.made.writes == "add" else x + branch

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.made.order == "parallel":
            same = self.first(x)
            return self.joined(x, self.attend(same, bias)) + self.mlp(same)
        if self.made.order == "post":
            x = self.first(self.joined(x, self.attend(x, bias)))
            return self.second(x + self.mlp(x))
        x = self.joined(x, self.attend(self.first(x), bias))
        return x + self.mlp(self.second(x))


class Convolution(nn.Module):
    """A depthwise convolution along the tokens; a causal model sees no later ones."""

    def __init__(self, made: Recipe) -> None:
        super().__init__()
        self.made = made
        self.mix = nn.Conv1d(made.width, made.width, 3, groups=made.width)

    def forward(self, x: Tensor) -> Tensor:
        order = (1, 2, 0) if self.made.tokens_first else (0, 2, 1)
        back = (2, 0, 1) if self.made.tokens_first else (0, 2, 1)
        sides = (1, 1) if self.made.causal == "none" else (2, 0)
        return x + self.mix(F.pad(x.permute(order), sides)).permute(back)


class Model(nn.Module):
    """Blocks over a linear embedding, and one or two heads."""

    def __init__(self, made: Recipe) -> None:
        super().__init__()
        self.made = made
        self.embed = nn.Linear(INPUT, made.width)
        self.blocks = nn.ModuleList(Block(made) for _ in range(made.layers))
        self.norm, self.head = norm(made), nn.Linear(made.width, CLASSES)
        if made.position == "learnt":
            self.place = nn.Parameter(torch.randn(made.tokens, made.width))
        if made.class_token:
            self.token = nn.Parameter(torch.randn(1, 1, made.width))
        if made.convolution:
            self.convolution = Convolution(made)
        if made.second != "none":
            self.other = nn.Linear(made.width, 3)

    def embedded(self, x: Tensor) -> Tensor:
        """`[batch, tokens, width]`, or tokens first."""
        x = self.embed(x)
        if self.made.class_token:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        if self.made.position == "learnt":
            x = x + self.place
        return x.transpose(0, 1) if self.made.tokens_first else x

    def pooled(self, x: Tensor, mask: Tensor | None, index: Tensor | None) -> Tensor:
        """What the head reads of `[batch, tokens, width]`."""
        kind = self.made.pooling
        if kind == "mean":
            return x.mean(1)
        if kind == "max":
            return x.amax(1)
        if kind in ("first", "last"):
            return x[:, 0] if kind == "first" else x[:, -1]
        if kind == "last_real" and index is not None:
            return x[torch.arange(x.shape[0]), index]
        if kind == "masked_mean" and mask is not None:
            share = mask.to(x.dtype)[:, :, None]
            return (x * share).sum(1) / share.sum(1)
        return x

    def forward(
        self, x: Tensor, mask: Tensor | None = None, index: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = self.embedded(x)
        bias, first = bias_of(self.made, self.made.tokens, mask), None
        for at, block in enumerate(self.blocks):
            x = block(x, bias)
            first = x if first is None else first
            if self.made.convolution and at == 0:
                x = self.convolution(x)
        x = x + first * 0.5 if self.made.skip and first is not None else x
        x = self.norm(x.transpose(0, 1) if self.made.tokens_first else x)
        out = self.head(self.pooled(x, mask, index))
        if self.made.second == "none":
            return out
        return out, self.other(x.mean(1) if self.made.second == "pooled" else x)


def build(made: Recipe) -> tuple[nn.Module, dict[str, Any]]:
    """The recipe's model in float64 and the inputs of its call, always the same ones.

    `x`: `[batch, tokens, 6]` (one token less with a class token); `mask`: `[batch, tokens]`, 1 for
    a token that is there; `index`: `[batch]`, the last token that is there.
    """
    made = consistent(made)
    torch.manual_seed(made.seed)
    model = ready(Model(made), 1.5)
    given = made.tokens - made.class_token
    call: dict[str, Any] = {"x": torch.randn(made.batch, given, INPUT, dtype=torch.float64)}
    mask = padding_mask(made)
    if made.padding != "none":
        call["mask"] = mask
    if made.pooling == "last_real":
        last = mask * torch.arange(made.tokens)
        call["index"] = last.argmax(1)
    return model, call


def padding_mask(made: Recipe) -> Tensor:
    """`[batch, tokens]`: later samples have more padding; a class token is always there."""
    mask = torch.ones(made.batch, made.tokens, dtype=torch.long)
    if made.padding == "none":
        return mask
    for sample in range(made.batch):
        missing = min((sample + (made.batch == 1)) * 2 + sample % 2, made.tokens - 3)
        if made.padded_left:
            mask[sample, int(made.class_token) :][:missing] = 0
        elif missing:
            mask[sample, -missing:] = 0
    return mask
