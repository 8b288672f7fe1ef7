"""The whole backend on a CUDA device: edited models, natural zeros, Inductor's CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.models.harness import relative
from tests.passes.test_natural_zeros import FAMILIES
from tokenpass.codegen.packed import PACKED
from tokenpass.report import LOG, GraphReport, last_reports

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # What drivers and other versions of torch and triton have to say is not the backend's fault.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error::tokenpass.errors.FallbackWarning"),
]

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    LOG.clear()
    PACKED.clear()
    yield
    torch._dynamo.reset()
    PACKED.clear()


def vit() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=112,
        patch_size=8,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
    )
    return ViTForImageClassification(config), {"pixel_values": torch.randn(4, 3, 112, 112)}


def llama() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    tokens = {"input_ids": torch.randint(0, 512, (2, 256))}
    return LlamaForCausalLM(config), {**tokens, "use_cache": False, "logits_to_keep": 1}


def decoder(name: str) -> tuple[nn.Module, dict[str, Any]]:
    return FAMILIES[name][0](), {"input_ids": torch.randint(3, 100, (1, 1)), "use_cache": False}


def ready(made: tuple[nn.Module, dict[str, Any]], dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """On the device, floating point inputs in the model's dtype."""
    model, call = made
    there = {
        name: value.to("cuda", dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for name, value in call.items()
    }
    return model.eval().to("cuda", dtype), there


def compiled(model: nn.Module, **options: Any) -> Any:
    """A failure is an error; small models are launch-bound, so that flops are counted."""
    chosen = {"objective": "flops", "on_failure": "raise", **options}
    return torch.compile(model, backend="tokenpass", options=chosen)


def only_report() -> GraphReport:
    (report,) = last_reports()
    return report


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build", [vit, llama])
def test_exact_edits(build: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model, call = ready(build(), dtype)
    with torch.no_grad():
        found = compiled(model, budget=1.0)(**call).logits
        assert relative([found.float()], [model(**call).logits.float()]) < CLOSE[dtype]
    assert only_report().outcome == "edited"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_a_budget(dtype: torch.dtype) -> None:
    """The first call is compared with the slow reference of its own plan."""
    torch.manual_seed(3)
    model, call = ready(vit(), dtype)
    run = compiled(model, budget=0.5, verify="first")
    with torch.no_grad():
        dense, found = model(**call).logits, run(**call).logits
        assert found.shape == dense.shape and found.isfinite().all()
        assert not torch.equal(found, dense)
        assert relative([run(**call).logits.float()], [found.float()]) < CLOSE[dtype]
    report = only_report()
    assert report.outcome == "edited" and report.plan.share <= 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["opt", "nemotron", "gemma3n"])
def test_natural_zeros(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    model, call = ready(decoder(name), dtype)
    run = compiled(model)
    with torch.no_grad():
        for change in (lambda p: None, lambda p: p.mul_(0.9), lambda p: p.data.mul_(0.9)):
            for parameter in model.parameters():
                change(parameter)
            found, dense = run(**call)[0].float(), model(**call)[0].float()
            assert relative([found], [dense]) < CLOSE[dtype]
    report = only_report()
    assert report.outcome == "edited" and report.packed_bytes > 0


@pytest.mark.parametrize("name", ["opt", "gemma3n"])
def test_natural_zeros_in_cuda_graphs(name: str) -> None:
    """Replays see new inputs and new weights; nothing keeps the graph from being captured."""
    torch.manual_seed(5)
    model, call = ready(decoder(name), torch.float32)
    counters.clear()
    run = compiled(model, inductor="reduce-overhead")
    with torch.no_grad():
        for token in (7, 9, 11, 13):
            call["input_ids"].fill_(token)
            assert relative([run(**call)[0].clone()], [model(**call)[0]]) < CLOSE[torch.float32]
        for parameter in model.parameters():
            parameter.mul_(0.9)
        assert relative([run(**call)[0].clone()], [model(**call)[0]]) < CLOSE[torch.float32]
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert only_report().outcome == "edited"
