"""The whole backend on a CUDA device: edited models, natural zeros, Inductor's CUDA graphs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.models.harness import relative
from tests.passes.test_natural_zeros import FAMILIES
from tokenpass.report import GraphReport, last_reports

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # What drivers and other versions of torch and triton have to say is not the backend's fault.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error::tokenpass.errors.FallbackWarning"),
]

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Of two calls with the same numbers."""


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


def assert_as_near_as_dense(model: nn.Module, call: dict[str, Any], found: Any, at: Any) -> None:
    """As near to double precision as the eager model is, which rounds between its operators."""
    dense = model(**call)[at]
    there = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in call.items()
    }
    exact = deepcopy(model).double()(**there)[at]
    own, off = (relative([one.double()], [exact]) for one in (dense, found))
    assert off <= 2 * own + CLOSE[torch.float32], (off, own)


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
        assert_as_near_as_dense(model, call, found, "logits")
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


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("opt", torch.float32),
        ("opt", torch.bfloat16),
        ("nemotron", torch.bfloat16),
        ("gemma3n", torch.float32),
        ("gemma3n", torch.bfloat16),
    ],
    ids=str,
)
def test_natural_zeros(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    model, call = ready(decoder(name), dtype)
    run = compiled(model)
    with torch.no_grad():
        for change in (lambda p: None, lambda p: p.mul_(0.9), lambda p: p.data.mul_(0.9)):
            for parameter in model.parameters():
                change(parameter)
            assert_as_near_as_dense(model, call, run(**call)[0], 0)
    report = only_report()
    assert report.outcome == "edited" and report.packed_bytes > 0
    edits = [edit.policy for edit in report.plan.edits if edit.pass_name == "natural_zeros"]
    assert edits == [FAMILIES[name][1]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activation_sparsity(dtype: torch.dtype) -> None:
    """A step of decoding; the first call is compared with the slow reference of its own plan."""
    torch.manual_seed(3)
    model, call = ready(llama(), dtype)
    call["input_ids"] = call["input_ids"][:1, :1]
    passes = [{"activation_sparsity": {"policy": "top_k", "sparsity": 0.5}}]
    run = compiled(model, passes=passes, verify="first", pack_memory=1.5)
    with torch.no_grad():
        dense, found = model(**call).logits, run(**call).logits
        assert found.isfinite().all() and not torch.equal(found, dense)
        assert torch.equal(run(**call).logits, found)
    edits = [edit for edit in only_report().plan.edits if edit.pass_name == "activation_sparsity"]
    assert len(edits) >= 4 * 7


def test_few_rows_say_why_they_do_nothing() -> None:
    torch.manual_seed(3)
    model, call = ready(llama(), torch.float32)
    call["input_ids"] = call["input_ids"][:1, :1]
    with torch.no_grad():
        found = compiled(model, objective="latency")(**call)
        assert_as_near_as_dense(model, call, found.logits, "logits")
    assert {one.code for one in only_report().rejections} >= {"no_kernel_rate"}


@pytest.mark.parametrize("name", ["opt", "gemma3n"])
def test_natural_zeros_in_cuda_graphs(name: str) -> None:
    """Replays see new inputs and new weights; what dense Inductor can capture, this can too."""
    torch.manual_seed(5)
    model, call = ready(decoder(name), torch.float32)
    skips = []
    for run in (
        torch.compile(model, mode="reduce-overhead"),
        compiled(model, inductor="reduce-overhead"),
    ):
        counters.clear()
        with torch.no_grad():
            for token in (7, 9, 11, 13):
                call["input_ids"].fill_(token)
                assert_as_near_as_dense(model, call, run(**call)[0].clone(), 0)
            for parameter in model.parameters():
                parameter.mul_(0.9)
            assert_as_near_as_dense(model, call, run(**call)[0].clone(), 0)
        skips.append(counters["inductor"]["cudagraph_skips"])
        torch._dynamo.reset()
    assert skips[1] <= skips[0]
    assert only_report().outcome == "edited"
