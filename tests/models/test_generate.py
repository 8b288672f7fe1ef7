"""`generate` with compiled steps, and `model.compile`, as users of transformers call them.

Caches keep their length by default, so every step is exact and the text is dense's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

from tokenpass.report import LOG, last_reports

OPTIONS = {"budget": 0.7, "lowering": "eager", "objective": "flops", "on_failure": "raise"}


def decoder(layers: int = 3, **extra: Any) -> LlamaForCausalLM:
    """A small causal model with grouped keys and values."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        **extra,
    )
    return LlamaForCausalLM(config).eval()


def prompt(seed: int) -> Tensor:
    """Token ids [2, 24]."""
    return torch.randint(1, 60, (2, 24), generator=torch.Generator().manual_seed(seed))


def generate(
    model: LlamaForCausalLM, ids: Tensor, compiled: bool, padded: int = 0, **how: Any
) -> Tensor:
    """Six new tokens over a static cache; the second sample has `padded` on its left."""
    extra: dict[str, Any] = {}
    if compiled:
        settings = CompileConfig(backend="tokenpass", mode=None, options=OPTIONS, fullgraph=False)
        settings._compile_all_devices = True  # transformers compiles on accelerators alone
        extra = {"compile_config": settings}
    mask = torch.ones_like(ids)
    mask[1, :padded] = 0
    torch.manual_seed(11)
    given = {"do_sample": False, "max_new_tokens": 6, "cache_implementation": "static", **how}
    return model.generate(ids, attention_mask=mask, pad_token_id=0, **given, **extra)


STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "left padded": {"padded": 5},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generate_compiles_once_and_writes_what_dense_writes(strategy: str) -> None:
    model, ids, how = decoder(), prompt(1), STRATEGIES[strategy]
    dense = generate(model, ids, compiled=False, **how)
    LOG.clear()
    counters.clear()
    first = generate(model, ids, compiled=True, **how)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs and last_reports()
    assert {report.outcome for report in last_reports()} <= {"dense", "edited"}
    assert torch.equal(first, dense)
    other = prompt(2)
    again = generate(model, other, compiled=True, **how)
    assert counters["stats"]["unique_graphs"] == graphs
    assert torch.equal(again, generate(model, other, compiled=False, **how))


@pytest.mark.parametrize("kind", ["greedy", "beam", "assisted", "beam, static"])
def test_model_compile_under_generate(kind: str) -> None:
    """DynamicCache with `model.compile`: lengths are dynamic, and a helper may draft tokens.

    transformers compiles no step of a beam search by itself, whatever the cache, and lets no helper
    draft for a static one.
    """
    model, ids = decoder(), prompt(3)[:1]
    how: dict[str, Any] = {"assistant_model": decoder(1)} if kind == "assisted" else {}
    how |= {"num_beams": 2} if "beam" in kind else {}
    how |= {"cache_implementation": "static"} if "static" in kind else {}
    given = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    dense = model.generate(ids, attention_mask=mask, **given, **how)
    LOG.clear()
    model.compile(backend="tokenpass", options=OPTIONS, dynamic=True)
    got = model.generate(ids, attention_mask=mask, **given, **how)
    assert {report.outcome for report in last_reports()} <= {"dense", "edited"}
    assert last_reports()
    assert torch.equal(got, dense)


def test_model_compile_edits_in_place() -> None:
    model, ids = decoder(), prompt(1)
    with torch.no_grad():
        dense = model(ids, use_cache=False, logits_to_keep=1).logits
        model.compile(backend="tokenpass", options={**OPTIONS, "budget": 1.0})
        LOG.clear()
        counters.clear()
        got = model(ids, use_cache=False, logits_to_keep=1).logits
        assert counters["stats"]["unique_graphs"] == 1
        (report,) = last_reports()
        assert [edit.pass_name for edit in report.plan.edits] == ["dead_tokens"]
        torch.testing.assert_close(got, dense)
        model(prompt(2), use_cache=False, logits_to_keep=1)
        assert counters["stats"]["unique_graphs"] == 1
