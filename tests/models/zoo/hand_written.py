"""Models as a user might write them, and those that come with torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.common import HEADS, LAYERS, WIDTH, Example, ready


class Block(nn.Module):
    """A pre-norm block with hand-written attention."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.before(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.causal:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
            mixed = weights @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.after(x))))


class Pooled(nn.Module):
    """Blocks with mean pooling and a classifier, as a user might write them."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.place = nn.Parameter(torch.randn(1, 64, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Stream(nn.Module):
    """Causal blocks that hand out every token."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def pooled() -> Example:
    return ready(Pooled(), 1.5), {"x": torch.randn(2, 18, 12, dtype=torch.float64)}


def causal_stream() -> Example:
    return ready(Stream(), 1.5), {"x": torch.randn(2, 18, 12, dtype=torch.float64)}


def torch_encoder() -> Example:
    layer = nn.TransformerEncoderLayer(  # an activation that no fused encoder layer knows
        WIDTH, HEADS, 48, dropout=0.0, activation=F.silu, batch_first=True
    )
    model = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    return ready(model, 1.5), {"src": torch.randn(2, 18, WIDTH, dtype=torch.float64)}


FAMILIES = (
    pooled,
    causal_stream,
    torch_encoder,
)
