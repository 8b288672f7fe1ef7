"""A small encoder to be checked, with faults that can be planted in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS = 32, 4


class Block(nn.Module):
    """Attention and MLP in front of their norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.first(x)
        q, k, v = (
            of(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for of in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Encoder(nn.Module):
    """Blocks on an embedding."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.table = nn.Embedding(100, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def encoder_of(layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return Encoder(layers).eval()


def ids(tokens: int) -> Tensor:
    return torch.randint(0, 100, (2, tokens), generator=torch.Generator().manual_seed(1))


class Broken(nn.Module):
    """Breaks the graph in front of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = encoder_of()

    def forward(self, input_ids: Tensor) -> Any:
        input_ids = input_ids * 1
        torch._dynamo.graph_break()
        return self.inner(input_ids=input_ids)


class Specialised(nn.Module):
    """Compiles anew for every length."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = encoder_of()

    def forward(self, input_ids: Tensor) -> Any:
        table = torch.tensor([[0] * input_ids.shape[1]])
        return self.inner(input_ids=input_ids + table)


def encoder() -> Any:
    return encoder_of(), (), {"input_ids": ids(48)}


def small() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU()).eval(), (torch.ones(4, 8),)


class Grows(nn.Module):
    """Keeps what it has seen in a list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        seen[0] = torch.cat([seen[0], x])
        return self.inner(seen[0]).sum(0)


def grows() -> Any:
    torch.manual_seed(0)
    return Grows().eval(), (torch.ones(4, 8), [torch.ones(1, 8)])


def deeper() -> Any:
    return encoder_of(4), (), {"input_ids": ids(48)}


def broken() -> Any:
    return Broken(), (), {"input_ids": ids(48)}


def specialised() -> Any:
    return Specialised(), (), {"input_ids": ids(48)}


def shapes() -> Any:
    return [{"input_ids": ids(n)} for n in (40, 56, 64)]


def raises() -> Any:
    raise RuntimeError("no weights here")


def nothing() -> Any:
    return None


def prints() -> Any:
    print("loading the weights")
    return encoder()


class NotFinite(nn.Module):
    """Gives NaN where it is compiled, and numbers where it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = encoder_of()

    def forward(self, input_ids: Tensor) -> Any:
        found = self.inner(input_ids=input_ids)
        return found * (float("nan") if torch.compiler.is_compiling() else 1.0)


def not_finite() -> Any:
    return NotFinite(), (), {"input_ids": ids(48)}


def metric(model: Any) -> float:
    return float(model(input_ids=ids(48)).shape[1])


def bad_metric(model: Any) -> float:
    raise ValueError("no labels here")
