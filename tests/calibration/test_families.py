"""Small models of transformers: names are the same in prefill, decoding and calibration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from tokenpass import calibrate
from tokenpass.capture.dynamo import capture
from tokenpass.graph.projections import projections
from tokenpass.pipeline.regions import static_inputs
from tokenpass.statistics import Histogram, weight_fingerprint

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(**SIZES, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
    ).eval()


def opt() -> Any:
    return OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32)
    ).eval()


def phi3() -> Any:
    return Phi3ForCausalLM(
        Phi3Config(**SIZES, intermediate_size=48, num_attention_heads=4, pad_token_id=0)
    ).eval()


def padded() -> list[dict[str, Any]]:
    ids = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return [{"input_ids": ids, "attention_mask": mask}]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("made", [llama, opt, phi3])
def test_prefills_calibrate_the_decoding_step(made: Any) -> None:
    model = made()
    found = calibrate(model, padded(), progress=False)
    linear = {
        f"{name}:projection": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert set(found.sites) == set(linear)
    assert {site.rows for site in found.sites.values()} == {20} and found.tokens == 20
    names: list[str] = []

    def backend(module: Any, inputs: Any) -> Any:
        captured = capture(module, inputs)
        static = static_inputs(captured.module, captured)
        names.extend(projections(captured.module.graph, static).values())
        return module.forward

    with torch.no_grad():
        cache = model(torch.randint(0, 64, (1, 5))).past_key_values
        torch.compile(model, backend=backend)(torch.tensor([[3]]), past_key_values=cache)
    assert set(names) == set(found.sites)
    for name in names:
        assert found.find(name, weight_fingerprint(linear[name].weight)) is found.sites[name]
    assert all(site.sensitivity is not None for site in found.sites.values())


@pytest.mark.parametrize("made", [llama, phi3])
def test_gated_layers_have_their_gate(made: Any) -> None:
    model = made()
    read: list[Any] = []
    mlp = model.model.layers[1].mlp
    hook = mlp.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    ids = padded()[0]["input_ids"]
    with torch.no_grad():
        model(ids)
        hook.remove()
        if made is phi3:
            gate, up = mlp.gate_up_proj(read[0]).chunk(2, dim=-1)
        else:
            gate, up = mlp.gate_proj(read[0]), mlp.up_proj(read[0])
    site = calibrate(model, [ids], progress=False, sensitivity=False).sites[
        "model.layers.1.mlp.down_proj:projection"
    ]
    for kept, value in ((site.gate, F.silu(gate)), (site.up, up)):
        assert kept is not None and kept.rows == 24
        moved = (kept.counts - Histogram.of(value.flatten(0, 1)).counts).abs().sum()
        assert int(moved) <= 8  # across the edges of bins


def test_relu_layers_have_a_core_and_no_gate() -> None:
    sites = calibrate(opt(), padded(), progress=False, sensitivity=False).sites
    site = sites["model.decoder.layers.0.fc2:projection"]
    assert site.gate is None and site.core is not None
    assert 0.3 < float(site.magnitude.share_below(0.0).mean()) < 0.7
    assert int(site.core.sum()) == pytest.approx(0.4 * 0.5 * 20 * 48, rel=0.3)
    assert sites["model.decoder.layers.0.fc1:projection"].core is None
