"""What stands between or around blocks: convolutions, experts, windows, scans, other layouts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.attention_spellings import INPUT, TOKENS, Block, Encoder, example, fused
from tests.models.zoo.common import HEADS, LAYERS, WIDTH, Example, ready


class Convolved(nn.Module):
    """A depthwise convolution along the tokens between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(fused)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x + self.mix(x.transpose(1, 2)).transpose(1, 2)


def written_convolution() -> Example:
    return example(Encoder([Block(fused), Convolved(), Block(fused), Block(fused)]))


class Hourglass(nn.Module):
    """Pairs of tokens are averaged for some blocks, and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(Block(fused) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        short = x.unflatten(1, (-1, 2)).mean(2)
        for block in self.inner:
            short = block(short)
        return x + short.repeat_interleave(2, 1)


def written_hourglass() -> Example:
    return example(Encoder([Block(fused), Hourglass(), Block(fused)]))


class TwoStreams(nn.Module):
    """Two residual streams over the same tokens, each with its own attention, joined late."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(INPUT, WIDTH)
        self.left = nn.ModuleList(Block(fused) for _ in range(2))
        self.right = nn.ModuleList(Block(fused) for _ in range(2))
        self.head = nn.Linear(2 * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        left = right = self.embed(x)
        for one, other in zip(self.left, self.right, strict=True):
            left, right = one(left), other(right)
        return self.head(torch.cat([left, right], -1)).mean(1)


def written_two_streams() -> Example:
    return example(TwoStreams())


class Experts(nn.Module):
    """Every token goes through the two best of four MLPs, spelt without sorting."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(WIDTH, 4)
        self.up = nn.Parameter(torch.randn(4, WIDTH, 24) * 0.2)
        self.down = nn.Parameter(torch.randn(4, 24, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        share = self.route(x).softmax(-1)
        best = share.topk(2, -1)
        gate = torch.zeros_like(share).scatter(-1, best.indices, best.values)
        hidden = F.gelu(torch.einsum("btw,ewh->bteh", x, self.up))
        return torch.einsum("bteh,ehw,bte->btw", hidden, self.down, gate)


class ExpertBlock(Block):
    def __init__(self) -> None:
        super().__init__(fused)
        self.experts = Experts()

    def mlp(self, x: Tensor) -> Tensor:
        return self.experts(x)


def written_experts() -> Example:
    return example(Encoder([ExpertBlock() for _ in range(LAYERS)]), 1.0)


class Attending(nn.Module):
    """`nn.MultiheadAttention` and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        same = self.norm(x)
        x = x + self.attention(same, same, same, need_weights=False)[0]
        return x + F.gelu(self.mlp(x))


def torch_attention() -> Example:
    return example(Encoder([Attending() for _ in range(LAYERS)]))


def torch_transformer() -> Example:
    model = nn.Transformer(WIDTH, HEADS, 2, 2, 48, dropout=0.0, activation=F.silu, batch_first=True)
    sides = {
        name: torch.randn(2, n, WIDTH, dtype=torch.float64) for name, n in (("src", 18), ("tgt", 9))
    }
    return ready(model, 1.5), sides


class Crossing(nn.Module):
    """Learnt queries look at encoded tokens (a Perceiver's reader)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder([Block(fused) for _ in range(2)], read="all")
        self.encoder.head = nn.Identity()
        self.queries = nn.Parameter(torch.randn(4, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(x)
        asked = self.queries.expand(x.shape[0], -1, -1)
        read = self.attention(asked, tokens, tokens, need_weights=False)[0]
        return self.head(read.flatten(0, 1)).unflatten(0, (x.shape[0], -1))


def written_reader() -> Example:
    return example(Crossing())


class Scan(nn.Module):
    """A gated linear recurrence, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.inward, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        gate, inward = self.gate(x).sigmoid(), self.inward(x)
        state, states = torch.zeros_like(x[:, 0]), []
        for at in range(x.shape[1]):
            state = gate[:, at] * state + inward[:, at]
            states.append(state)
        return x + self.out(torch.stack(states, 1))


def written_scan() -> Example:
    return example(Encoder([Block(fused), Scan(), Block(fused), Block(fused)]))


class Windowed(nn.Module):
    """Attention within windows of six tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(fused)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        windows = x.unflatten(1, (-1, 6)).flatten(0, 1)
        return self.block(windows).unflatten(0, (batch, -1)).flatten(1, 2)


def written_windows() -> Example:
    return example(Encoder([Windowed(), Windowed()]))


def written_windows_between() -> Example:
    return example(Encoder([Block(fused), Windowed(), Block(fused), Block(fused)]))


class Sequential(nn.Module):
    """Tokens first, samples second, as torch did it before `batch_first`."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, dropout=0.0, activation=F.silu)
        self.embed = nn.Linear(INPUT, WIDTH)
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x).transpose(0, 1)).mean(0))


def torch_tokens_first() -> Example:
    return example(Sequential())


class Unbatched(nn.Module):
    """One text without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Encoder([Block(fused) for _ in range(LAYERS)])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x[None])[0]


def written_unbatched() -> Example:
    return ready(Unbatched(), 1.5), {"x": torch.randn(TOKENS, INPUT, dtype=torch.float64)}


class ClassToken(nn.Module):
    """A learnt token in front, read at the end; the tokens' count equals the width."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Encoder([Block(fused) for _ in range(LAYERS)], read="first")
        self.token = nn.Parameter(torch.randn(1, 1, INPUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))


def written_class_token() -> Example:
    model = ready(ClassToken(), 1.5)
    return model, {"x": torch.randn(4, WIDTH - 1, INPUT, dtype=torch.float64)}


FAMILIES = (
    written_convolution,
    written_hourglass,
    written_two_streams,
    written_experts,
    torch_attention,
    torch_transformer,
    written_reader,
    written_scan,
    written_windows,
    written_windows_between,
    torch_tokens_first,
    written_unbatched,
    written_class_token,
)
