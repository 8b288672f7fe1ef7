"""Many lengths and batches in one compiled model, and many compilations of one model."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from tests.models.harness import relative
from tests.models.zoo.attention_spellings import Block as Spelt
from tests.models.zoo.attention_spellings import Encoder, fused
from tests.models.zoo.common import HEADS, WIDTH, ready
from tests.models.zoo.hand_written import Block, Pooled
from tokenpass.graph.view import View
from tokenpass.report import last_reports

OPTIONS = {"lowering": "eager", "objective": "flops", "on_failure": "raise"}
LENGTHS = 50


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    counters.clear()


class Padded(nn.Module):
    """Blocks that hide padding, and the mean of what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, WIDTH)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(x)
        for qkv, mlp in zip(self.qkv, self.mlp, strict=True):
            parts = qkv(self.norm(x)).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
            x = x + seen.transpose(1, 2).flatten(2)
            x = x + F.gelu(mlp(self.norm(x)))
        real = mask.to(x.dtype)[..., None]
        return (x * real).sum(1) / real.sum(1)


class LastToken(nn.Module):
    """Causal blocks, read at the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS, causal=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, -1])


def tokens(order: random.Random) -> dict[str, Tensor]:
    """A call of a length and a batch of its own."""
    batch, length = order.randint(2, 5), order.randint(12, 60)
    return {"x": torch.randn(batch, length, 12, dtype=torch.float64)}


def padded_tokens(order: random.Random) -> dict[str, Tensor]:
    """The same with another number of real tokens in every sample."""
    call = tokens(order)
    batch, length, _ = call["x"].shape
    real = torch.tensor([length, *(order.randint(6, length) for _ in range(batch - 1))])
    return {**call, "mask": torch.arange(length)[None] < real[:, None]}


@pytest.mark.parametrize("budget", [1.0, 0.5])
@pytest.mark.parametrize(
    ("make", "call"),
    [(lambda: Pooled(layers=2), tokens), (Padded, padded_tokens), (LastToken, tokens)],
    ids=["pooled", "padded", "causal"],
)
def test_two_graphs_serve_all_lengths(
    make: Callable[[], nn.Module], call: Callable[[random.Random], dict[str, Tensor]], budget: float
) -> None:
    torch.manual_seed(1)
    model, order = ready(make(), 1.5), random.Random(4)
    run = torch.compile(model, backend="tokenpass", options={**OPTIONS, "budget": budget})
    with torch.no_grad():
        for _ in range(LENGTHS):
            given = call(order)
            error = relative([run(**given)], [model(**given)])
            assert error < (1e-10 if budget == 1.0 else 1)
    assert counters["stats"]["unique_graphs"] == len(last_reports()) <= 2
    if budget < 1:
        assert {report.exact for report in last_reports()} == {False}


def test_padding_leaves_before_real_tokens_and_a_masked_mean_does_not_see_it() -> None:
    """As long as a sample has padding to lose, nothing is lost of it."""
    torch.manual_seed(1)
    model, real = ready(Padded(), 1.5), torch.tensor([40, 12])
    call = {"x": torch.randn(2, 40, 12, dtype=torch.float64)}
    call["mask"] = torch.arange(40)[None] < real[:, None]
    run = torch.compile(model, backend="tokenpass", options={**OPTIONS, "budget": 0.8})
    with torch.no_grad():
        got, dense = run(**call), model(**call)
    assert relative([got[0]], [dense[0]]) > 1e-3
    torch.testing.assert_close(got[1], dense[1])


CYCLES = 30


def test_compiling_again_and_again_keeps_nothing_alive() -> None:
    """What a compilation makes is gone with Dynamo's own caches."""
    torch.manual_seed(1)
    model = ready(Encoder([Spelt(fused)], read="first"), 1.5)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    held: list[Counter[str]] = []
    for cycle in range(CYCLES):
        with torch.no_grad():
            torch.compile(model, backend="tokenpass", options=OPTIONS)(x)
        assert last_reports()[-1].outcome == "edited"
        torch._dynamo.reset()
        if cycle in (2, CYCLES - 1):
            held.append(alive())
    early, late = held
    assert late <= early


def alive() -> Counter[str]:
    """Graphs and views that something still refers to.

    Fake modes are not counted: torch remembers answers of their shape environments for a while.
    """
    gc.collect()
    kinds: tuple[Any, ...] = (GraphModule, View)
    found = [type(x) for x in gc.get_objects() if type(x).__module__ != "builtins"]
    return Counter(k.__name__ for t in found for k in kinds if issubclass(t, k))
