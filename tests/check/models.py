"""A small encoder to be checked, with faults that can be planted in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def bert(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES | more), add_pooling_layer=False).eval()


def ids(tokens: int) -> Tensor:
    return torch.randint(0, 100, (2, tokens), generator=torch.Generator().manual_seed(1))


class Broken(nn.Module):
    """Breaks the graph in front of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()

    def forward(self, input_ids: Tensor) -> Any:
        input_ids = input_ids * 1
        torch._dynamo.graph_break()
        return self.inner(input_ids=input_ids)


class Specialised(nn.Module):
    """Compiles anew for every length."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()

    def forward(self, input_ids: Tensor) -> Any:
        table = torch.tensor([[0] * input_ids.shape[1]])
        return self.inner(input_ids=input_ids + table)


def encoder() -> Any:
    return bert(), (), {"input_ids": ids(48)}


def deeper() -> Any:
    return bert(num_hidden_layers=4), (), {"input_ids": ids(48)}


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
        self.inner = bert()

    def forward(self, input_ids: Tensor) -> Any:
        found = self.inner(input_ids=input_ids).last_hidden_state
        return found * (float("nan") if torch.compiler.is_compiling() else 1.0)


def not_finite() -> Any:
    return NotFinite(), (), {"input_ids": ids(48)}


def metric(model: Any) -> float:
    return float(model(input_ids=ids(48)).last_hidden_state.shape[1])


def bad_metric(model: Any) -> float:
    raise ValueError("no labels here")
