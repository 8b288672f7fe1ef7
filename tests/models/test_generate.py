"""`generate` with a compiled step, and `model.compile`, as users of transformers call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

from tokenpass.report import LOG, last_reports

OPTIONS = {"budget": 0.7, "lowering": "eager", "objective": "flops", "on_failure": "raise"}


def decoder() -> LlamaForCausalLM:
    """A small causal model with grouped keys and values."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).eval()


def prompt(seed: int) -> Tensor:
    """Token ids [2, 24]."""
    return torch.randint(0, 60, (2, 24), generator=torch.Generator().manual_seed(seed))


def generate(model: LlamaForCausalLM, ids: Tensor, compiled: bool) -> Tensor:
    extra: dict[str, Any] = {}
    if compiled:
        compile_config = CompileConfig(
            backend="tokenpass", mode=None, options=OPTIONS, fullgraph=False
        )
        compile_config._compile_all_devices = True  # transformers compiles on accelerators alone
        extra = {"compile_config": compile_config}
    mask = torch.ones_like(ids)
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        cache_implementation="static",
        **extra,
    )


def test_generate_compiles_once_and_keeps_what_dense_writes() -> None:
    """Caches keep their length by default, so every step is exact and the text is dense's."""
    model, ids = decoder(), prompt(1)
    dense = generate(model, ids, compiled=False)
    LOG.clear()
    counters.clear()
    first = generate(model, ids, compiled=True)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs and last_reports()
    assert {report.outcome for report in last_reports()} <= {"dense", "edited"}
    assert torch.equal(first, dense)
    other = prompt(2)
    again = generate(model, other, compiled=True)
    assert counters["stats"]["unique_graphs"] == graphs
    assert torch.equal(again, generate(model, other, compiled=False))


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
