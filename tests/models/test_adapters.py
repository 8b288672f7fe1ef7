"""What is put around a model's weights: adapters beside them, quantised tensors in their place."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
    quantize_,
)

from tests.models.examine import exact_error, planned
from tests.models.harness import capture_calls, made, relative
from tests.models.zoo import FAMILIES
from tests.models.zoo.hand_written import Pooled
from tokenpass.report import last_reports

OPTIONS = {"lowering": "eager", "objective": "flops", "on_failure": "raise"}
TARGETS = {
    "bert": ["query", "value"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "vit": "all-linear",
}


def unmerged(model: PeftModel) -> nn.Module:
    return model


def merged(model: PeftModel) -> nn.Module:
    return model.merge_and_unload()


def two(model: PeftModel) -> nn.Module:
    """A second adapter, active beside the first."""
    model.add_adapter("other", adapter(model.peft_config["default"].target_modules))
    model.base_model.set_adapter(["default", "other"])
    return model


def adapter(targets: Any) -> LoraConfig:
    """An adapter that changes what the model gives: both of its factors are random."""
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)


def adapted(name: str, how: Callable[[PeftModel], nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    model, call = made(FAMILIES[name])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks by a name that is on its way out
        plain = model(**call)[0]
        model = how(get_peft_model(model, adapter(TARGETS[name]))).double().eval()
        assert relative([model(**call)[0]], [plain]) > 1e-3  # the adapters do something
    return model, call


CORE = [("vit", two)]
REST = [(n, how) for n in TARGETS for how in (unmerged, merged, two) if (n, how) not in CORE]


@pytest.mark.parametrize(("name", "how"), CORE)
def test_lora(name: str, how: Callable[[PeftModel], nn.Module]) -> None:
    check(*adapted(name, how))


@pytest.mark.slow  # a minute together
@pytest.mark.parametrize(("name", "how"), REST)
def test_lora_on_the_others(name: str, how: Callable[[PeftModel], nn.Module]) -> None:
    check(*adapted(name, how))


def test_quantised_weights() -> None:
    """They stay as they are: the graph reads their parts, and nothing makes them whole."""
    model, call = quantised("bert", Int8WeightOnlyConfig)
    weights = {n: p for n, p in model.named_parameters() if isinstance(p, Int8Tensor)}
    assert len(weights) > 10
    data = {name: weight.qdata.data_ptr() for name, weight in weights.items()}
    check(model, call, 1e-4)
    for name, weight in weights.items():
        assert model.get_parameter(name) is weight and weight.qdata.data_ptr() == data[name]


def quantised(name: str, how: type) -> tuple[nn.Module, dict[str, Any]]:
    model, call = made(FAMILIES[name])
    model = model.float()
    quantize_(model, how())
    return model, call


def test_quantised_activations_run_dense() -> None:
    """Products of integers have no rule: some devices refuse them few rows."""
    model, call = quantised("bert", Int8DynamicActivationInt8WeightConfig)
    with torch.no_grad():
        assert relative(compiled(model, budget=0.5)(**call), model(**call)) < 1e-4
    (report,) = last_reports()
    assert (report.outcome, report.rejections[0].code) == ("dense", "no_token_stream")


def test_the_graph_of_quantised_weights_reads_their_integers() -> None:
    model, call = quantised("bert", Int8WeightOnlyConfig)
    (graph,) = capture_calls(model, [call])
    read = {x.data_ptr() for x in graph.inputs if x.dtype == torch.int8}
    assert read >= {p.qdata.data_ptr() for p in model.parameters() if isinstance(p, Int8Tensor)}
    assert not any(node.op == "get_attr" for node in graph.view.module.graph.nodes)


class Scaled(nn.Module):
    """Blocks whose first weight is handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pooled(layers=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.body(x), self.body.embed.weight.detach()


def test_a_wrapper_that_is_handed_out_runs_dense() -> None:
    model = Scaled().eval()
    quantize_(model, Int8WeightOnlyConfig())
    x = torch.randn(2, 18, 12)
    with torch.no_grad():
        got, weight = compiled(model)(x)
        assert torch.equal(got, model(x)[0]) and isinstance(weight, Int8Tensor)
    (report,) = last_reports()
    assert (report.outcome, report.rejections[0].code) == ("dense", "tensor_subclass")


def check(model: nn.Module, call: dict[str, Any], tolerance: float = 1e-9) -> None:
    """One graph, dense's at budget 1.0, and its plan's reference at 0.5."""
    (graph,) = capture_calls(model, [call], fullgraph=True)
    assert exact_error(graph, planned(graph, budget=1.0)) < tolerance
    with torch.no_grad():
        assert relative(graph.dense(), model(**call)) < tolerance
        half = compiled(model, budget=0.5)(**call)
    report = last_reports()[-1]
    assert (report.outcome, report.exact) == ("edited", False)
    assert report.plan.share < 1
    again = graph.planned(report.plan.edits, seed=report.plan.seed)
    assert relative(half, graph.reference(again)) < tolerance


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="tokenpass", options={**OPTIONS, **options})
