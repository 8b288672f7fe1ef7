"""Models compiled for a budget: shapes kept, exact at 1.0, one compile for many lengths, caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.models.harness import capture_calls, family, pinned, relative, tensors
from tests.models.zoo import FAMILIES
from tests.models.zoo.common import TEXT, ready, words
from tests.models.zoo.hand_written import Pooled
from tokenpass.edits import Edit
from tokenpass.graph.view import fingerprint
from tokenpass.report import GraphReport, last_reports

EAGER = {"lowering": "eager", "objective": "flops", "on_failure": "raise"}
SOME = ("vit", "bert_padded", "bert_classifier", "llama", "gpt2", "clip_text", "t5", "pooled")


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="tokenpass", options={**EAGER, **options})


def newest() -> GraphReport:
    return last_reports()[-1]


@pytest.mark.parametrize("name", ["vit", "bert_classifier"])
def test_shapes_are_kept_at_a_budget(name: str) -> None:
    check_budgets(name, (0.6,))


@pytest.mark.slow  # 24 compilations of a few seconds
@pytest.mark.parametrize("name", SOME)
def test_shapes_are_kept_at_every_budget(name: str) -> None:
    check_budgets(name, (0.75, 0.5, 0.2))


def check_budgets(name: str, budgets: tuple[float, ...]) -> None:
    model, call, _ = family(name)
    with torch.no_grad():
        expected = model(**call)
        for budget in budgets:
            torch._dynamo.reset()
            got = compiled(model, budget=budget)(**call)
            shapes = [x.shape for x in tensors(got)]
            assert shapes == [x.shape for x in tensors(expected)]
            assert relative(got, expected) < 3
            plan = newest().plan
            if newest().outcome == "edited" and not plan.notes:
                assert plan.share <= budget * 1.001


@pytest.mark.parametrize("name", ["vit", "bert_padded", "llama", "gpt2", "t5"])
def test_budget_one_is_exact(name: str) -> None:
    """Root mean square against float64: at most twice dense's own, plus one ulp."""
    model, call, _ = family(name)
    with torch.no_grad():
        truth = tensors(model(**call))
        single = model.float()
        data = {k: v.float() if v.is_floating_point() else v for k, v in only_tensors(call)}
        rest = {k: v for k, v in call.items() if not isinstance(v, torch.Tensor)}
        dense = tensors(single(**data, **rest))
        got = tensors(compiled(single)(**data, **rest))
    model.double()
    for exact, plain, edited in zip(truth, dense, got, strict=True):
        ulp = torch.finfo(torch.float32).eps * exact.abs().max()
        assert rms(edited - exact) <= 2 * rms(plain - exact) + ulp


def only_tensors(call: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    return [(k, v) for k, v in call.items() if isinstance(v, torch.Tensor)]


def rms(error: torch.Tensor) -> torch.Tensor:
    return error.double().pow(2).mean().sqrt()


@pytest.mark.parametrize("name", ["vit", "llama"])
def test_dead_tokens_act_at_budget_one(name: str) -> None:
    model, call, _ = family(name)
    with torch.no_grad():
        got = compiled(model)(**call)
        assert relative(got, model(**call)) < 1e-12
    assert [e.pass_name for e in newest().plan.edits] == ["dead_tokens"]
    assert newest().plan.share < 1


def test_a_plan_without_edits_is_bit_equal() -> None:
    model, call, _ = family("bert_padded")
    with torch.no_grad():
        got, expected = compiled(model)(**call), model(**call)
    assert newest().outcome == "dense"
    assert all(torch.equal(x, y) for x, y in zip(tensors(got), tensors(expected), strict=True))


class Doubled(nn.Module):
    """Every token twice, beside each other, through blocks without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pooled(layers=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body.embed(x)
        for block in self.body.blocks:
            x = block(x)
        return self.body.norm(x)


def test_merged_duplicates_with_their_sizes_are_full_attention() -> None:
    torch.manual_seed(1)
    model = ready(Doubled(), 1.5)
    x = torch.randn(2, 9, 12, dtype=torch.float64).repeat_interleave(2, 1)
    (graph,) = capture_calls(model, [{"x": x}])
    site = next(s for s in graph.view.sites if s.role == "after_attention")
    module = graph.planned([Edit("token_merge", site.name, "tome", "9")]).module
    assert module is not None
    assert relative(graph.run(module), graph.dense()) < 1e-12


def test_eval_without_no_grad_is_edited_and_gradients_flow() -> None:
    model, call, _ = family("bert_classifier")
    got = compiled(model, budget=0.6)(**call).logits
    assert newest().outcome == "edited"
    got.sum().backward()
    query = model.get_parameter("bert.encoder.layer.1.attention.self.query.weight")
    assert query.grad is not None and query.grad.abs().sum() > 0
    model.zero_grad()


@pytest.mark.parametrize("training", ["refuse", "allow"])
def test_train_mode(training: str) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**TEXT, num_labels=5, hidden_dropout_prob=0.1)
    model = BertForSequenceClassification(config).train()
    out = compiled(model, budget=0.6, training=training)(input_ids=words())
    out.logits.sum().backward()
    if training == "refuse":
        (why,) = newest().rejections
        assert (newest().outcome, why.code) == ("dense", "train_mode")
        assert "training: allow" in why.hint
    else:
        assert newest().outcome == "edited"


@pytest.mark.slow  # symbolic shapes: ten seconds and more for each
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_one_compile_serves_several_lengths_of_larger_models(name: str) -> None:
    check_lengths(name)


@pytest.mark.parametrize("name", ["bert_padded", "pooled"])
def test_one_compile_serves_several_lengths(name: str) -> None:
    check_lengths(name)


def check_lengths(name: str) -> None:
    """Dynamo itself compiles some of these models a second time, whatever the backend."""
    model, call, _ = family(name)
    run = torch.compile(model, backend="tokenpass", dynamic=True, options={**EAGER, "budget": 0.7})
    shapes = []
    for length in (20, 17, 14, 19):
        shorter = {k: cut(k, v, length) for k, v in call.items()}
        with torch.no_grad():
            got, dense = run(**shorter), model(**shorter)
        assert relative(got, dense) < 3
        shapes.append(len(last_reports()))
    assert shapes[1:] == shapes[1:2] * 3
    assert shapes[-1] <= 2


def cut(name: str, value: Any, length: int) -> Any:
    """The first tokens of an input."""
    return value[:, :length].contiguous() if isinstance(value, torch.Tensor) else value


def test_levels_follow_the_length() -> None:
    model, call, _ = family("bert_padded")
    (graph,) = capture_calls(model, [call], dynamic=True)
    (first, second) = [s for s in graph.view.sites if s.role == "after_attention"][:2]
    edits = [
        Edit("token_merge", first.name, "tome", "floor(3*tokens/4)"),
        Edit("token_merge", second.name, "tome", "Max(tokens//2, 3)"),
    ]
    planned = graph.planned(edits)
    module = planned.module
    assert module is not None
    for length in (20, 16, 11):
        inputs = [shortened(v, length) for v in graph.inputs]
        other = type(graph)(graph.captured, graph.view, tuple(inputs))
        assert relative(other.run(module), other.reference(planned)) < 1e-9


def shortened(value: Any, length: int) -> Any:
    """Graph inputs of a shorter call: token tensors and the symbol of their length."""
    if isinstance(value, int):
        return length if value == 20 else value
    is_data = isinstance(value, torch.Tensor) and value.dtype == torch.long and value.dim() == 2
    return value[:, :length] if is_data and value.shape[1] == 20 else value


def test_model_compile() -> None:
    model, call = FAMILIES["bert_classifier"]()
    with torch.no_grad():
        expected = model(**call)
        model.compile(backend="tokenpass", options={**EAGER, "budget": 0.6})
        got = model(**call)
    assert newest().outcome == "edited"
    assert got.logits.shape == expected.logits.shape
    assert 0 < relative(got, expected) < 2


@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside: bool) -> None:
    class Inside(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, **call: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return self.body(**call)

    model, call = FAMILIES["bert_classifier"]()
    model = model.float()
    run = compiled(Inside(model) if inside else model, budget=0.6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        got = run(**call).logits
        dense = (Inside(model) if inside else model)(**call).logits
    assert newest().outcome == "edited"
    assert got.dtype == dense.dtype
    assert relative(got, dense) < 1


def test_bfloat16() -> None:
    model, call = FAMILIES["llama"]()
    model = model.bfloat16()
    with torch.no_grad():
        got, dense = compiled(model, budget=0.6)(**call).logits, model(**call).logits
    assert newest().outcome == "edited"
    assert got.dtype == torch.bfloat16
    assert relative(got, dense) < 1.5


def test_caches_keep_their_length() -> None:
    model, _, _ = family("llama")
    with torch.no_grad():
        got = compiled(model, budget=0.5)(input_ids=words(), use_cache=True, logits_to_keep=1)
    assert {layer.keys.shape[2] for layer in got.past_key_values.layers} == {20}
    codes = {r.code for r in newest().rejections}
    assert "cache_keeps_length" in codes
    assert not {e.pass_name for e in newest().plan.edits} & {"token_merge", "token_prune"}
    hints = [r.hint for r in newest().rejections if r.code == "cache_keeps_length"]
    assert all("shorter_cache" in hint for hint in hints)


def test_shorter_caches_but_for_the_first_layer() -> None:
    model, _, _ = family("llama")
    with torch.no_grad():
        run = compiled(model, budget=0.5, shorter_cache=True)
        got = run(input_ids=words(2, 60), use_cache=True, logits_to_keep=1)
    lengths = [layer.keys.shape[2] for layer in got.past_key_values.layers]
    assert lengths[0] == 60
    assert max(lengths[1:]) < 60


def test_a_padded_batch_keeps_its_caches() -> None:
    model, _, _ = family("llama")
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :6] = 0
    with torch.no_grad():
        run = compiled(model, budget=0.5, shorter_cache=True)
        got = run(input_ids=words(), attention_mask=mask, use_cache=True, logits_to_keep=1)
    assert {layer.keys.shape[2] for layer in got.past_key_values.layers} == {20}
    assert "padded_cache" in {r.code for r in newest().rejections}


def test_pinned_edits_through_options() -> None:
    model, call, graph = family("vit")
    (site,) = [s for s in graph.view.sites if s.name == "vit.layers.0:after_attention"]
    edits = [Edit("token_merge", site.name, "tome", "17")]
    config = {
        "version": 1,
        "fingerprint": fingerprint(graph.view.module),
        "edits": [{"pass": "token_merge", "site": site.name, "policy": "tome", "level": "17"}],
    }
    assert pinned(edits, config["fingerprint"]).edits
    with torch.no_grad():
        run = torch.compile(
            model, backend="tokenpass", options={"lowering": "eager", "config": config}
        )
        got = run(**call)
    assert relative([got.logits], graph.reference(graph.planned(edits))) < 1e-9
