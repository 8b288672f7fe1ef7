"""What a real call brings: dtypes, autocast, optional outputs, graph breaks, lengths, exports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, LlamaForCausalLM

from tests.models.harness import relative, tensors
from tests.models.test_generate import decoder, prompt
from tests.models.zoo.attention_spellings import Block as Spelt
from tests.models.zoo.attention_spellings import Encoder, fused
from tests.models.zoo.common import TEXT, ready, right_padded, words
from tests.models.zoo.hand_written import Pooled
from tokenpass.report import last_reports

OPTIONS = {"budget": 0.6, "lowering": "eager", "objective": "flops", "on_failure": "raise"}


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    counters.clear()


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="tokenpass", options={**OPTIONS, **options})


def outcomes() -> set[str]:
    return {report.outcome for report in last_reports()}


def bert(**extra: Any) -> BertModel:
    torch.manual_seed(2)
    return BertModel(BertConfig(**TEXT, **extra)).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    model, ids, mask = bert().to(dtype), words(), right_padded()
    with torch.no_grad():
        got = compiled(model, verify="first")(input_ids=ids, attention_mask=mask)
        expected = model(input_ids=ids, attention_mask=mask)
    assert outcomes() == {"edited"}
    assert got.last_hidden_state.dtype == dtype
    assert relative(got, expected) < 1


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(inside: bool) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = bert()

        def forward(self, ids: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.body(input_ids=ids).last_hidden_state

    model, ids = Cast() if inside else bert(), words()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        got, expected = compiled(model)(ids), model(ids)
    assert outcomes() == {"edited"}
    assert [x.dtype for x in tensors(got)] == [x.dtype for x in tensors(expected)]
    assert relative(got, expected) < 1


@pytest.mark.parametrize("wanted", ["output_hidden_states", "output_attentions"])
def test_optional_outputs_keep_their_shapes(wanted: str) -> None:
    model, ids = bert(attn_implementation="eager"), words()
    with torch.no_grad():
        expected = model(input_ids=ids, **{wanted: True})
        got = compiled(model)(input_ids=ids, **{wanted: True})
    assert [x.shape for x in tensors(got)] == [x.shape for x in tensors(expected)]
    assert all(torch.isfinite(x).all() for x in tensors(got))
    assert outcomes() == {"edited"} or last_reports()[0].rejections


def test_graphs_after_a_break_have_budgets_of_their_own() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Pooled(layers=4)

        def forward(self, x: Tensor) -> Tensor:
            first, second, third, fourth = self.body.blocks
            x = second(first(self.body.embed(x)))
            torch._dynamo.graph_break()
            return self.body.norm(fourth(third(x))).mean(1)

    model = ready(Broken(), 1.5)
    x = torch.randn(2, 24, 12, dtype=torch.float64)
    with torch.no_grad():
        got, expected = compiled(model)(x), model(x)
    assert len(last_reports()) == 2 and outcomes() == {"edited"}
    assert got.shape == expected.shape


def test_samples_are_independent() -> None:
    """Each sample loses tokens of its own: their order, and who else is there, changes nothing."""
    model, ids, mask = bert().double(), words(4), right_padded(4)
    run = compiled(model)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        straight = run(input_ids=ids, attention_mask=mask).last_hidden_state
        moved = run(input_ids=ids[order], attention_mask=mask[order]).last_hidden_state
    assert outcomes() == {"edited"}
    torch.testing.assert_close(moved, straight[order])


def test_what_padding_holds_changes_nothing() -> None:
    model, ids, mask = bert().double(), words(), right_padded()
    run, other = compiled(model), ids.clone()
    other[mask == 0] = 5
    with torch.no_grad():
        first = run(input_ids=ids, attention_mask=mask).last_hidden_state[mask == 1]
        second = run(input_ids=other, attention_mask=mask).last_hidden_state[mask == 1]
    assert outcomes() == {"edited"}
    torch.testing.assert_close(first, second)


def test_an_exported_model() -> None:
    model = ready(Pooled(layers=3), 1.5)
    x = torch.randn(2, 24, 12, dtype=torch.float64)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        got, expected = compiled(exported)(x), model(x)
    assert "edited" in outcomes()
    assert got.shape == expected.shape and relative(got, expected) < 1


def test_gradient_checkpointing_runs_dense() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Pooled(layers=2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body.embed(x)
            for block in self.body.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.body.norm(x).mean(1)

    model = ready(Checkpointed(), 1.5)
    got = compiled(model)(torch.randn(2, 24, 12, dtype=torch.float64))
    got.square().mean().backward()
    assert outcomes() == {"dense"}
    assert {r.code for r in last_reports()[0].rejections} == {"higher_order_operator"}
    assert model.get_parameter("body.embed.weight").grad is not None


def test_tied_weights() -> None:
    """One parameter is table and head: a single input of the graph."""
    model: LlamaForCausalLM = decoder(2, tie_word_embeddings=True).double()
    ids = prompt(5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    call = {"use_cache": False, "logits_to_keep": 1}
    with torch.no_grad():
        got, expected = compiled(model, budget=1.0)(ids, **call), model(ids, **call)
    assert outcomes() == {"edited"}
    assert relative(got, expected) < 1e-6
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("passed", ["token_merge", "token_prune"])
def test_gradients_are_those_of_the_edited_model(passed: str) -> None:
    """Along random directions of weights and input, beside central differences."""
    torch.manual_seed(6)
    policy = {"policy": "key_norm"} if passed == "token_prune" else {}
    model = ready(Pooled(layers=2), 1.5).train()
    passes = [{passed: {**policy, "keep_ratio": 0.7}}]
    run = torch.compile(
        model,
        backend="tokenpass",
        options={**OPTIONS, "budget": 1.0, "passes": passes, "training": "allow"},
    )
    x = torch.randn(2, 24, 12, dtype=torch.float64, requires_grad=True)
    run(x).square().sum().backward()
    assert outcomes() == {"edited"} and not last_reports()[0].exact
    for value in (x, *(p for p in model.parameters() if p.dim() > 1)):
        slope = torch.randn_like(value)
        expected = difference(lambda: run(x).square().sum(), value, slope)
        assert value.grad is not None
        torch.testing.assert_close((value.grad * slope).sum(), expected, rtol=1e-5, atol=1e-6)


def difference(
    function: Callable[[], Tensor], value: Tensor, slope: Tensor, step: float = 1e-6
) -> Tensor:
    """The central difference of a function along a direction of one of its values."""
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            value.add_(slope, alpha=sign * step)
        ends.append(function().detach())
        with torch.no_grad():
            value.sub_(slope, alpha=sign * step)
    return (ends[0] - ends[1]) / (2 * step)


def test_a_cached_prefix() -> None:
    """Tokens that attend to a cache beside themselves: outputs are dense's."""
    model: LlamaForCausalLM = decoder()
    ids = prompt(4)
    with torch.no_grad():
        prefix = model(ids[:, :16], use_cache=True).past_key_values
        again = model(ids[:, :16], use_cache=True).past_key_values
        call = {"use_cache": True, "logits_to_keep": 1}
        expected = model(ids[:, 16:], past_key_values=prefix, **call)
        got = compiled(model)(ids[:, 16:], past_key_values=again, **call)
    assert outcomes() <= {"dense", "edited"}
    assert relative(got.logits, expected.logits) < 1e-5
    assert got.past_key_values.get_seq_length() == 24


PLAN = """
import torch, sys
from tests.models.zoo.common import ready
from tests.models.zoo.hand_written import Pooled
from tokenpass.report import last_reports
torch.manual_seed(0)
model, x = ready(Pooled(layers=4), 1.5), torch.randn(2, 24, 12, dtype=torch.float64)
options = {"budget": 0.5, "lowering": "eager", "objective": "flops"}
with torch.no_grad():
    torch.compile(model, backend="tokenpass", options=options)(x)
print(last_reports()[0].plan_yaml)
"""


def test_the_plan_does_not_depend_on_the_hash_seed() -> None:
    root = Path(__file__).parents[2]
    plans = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PLAN],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(plans) == 1 and "token_merge" in plans.pop()


@pytest.mark.parametrize(("batch", "tokens"), [(2, 1), (0, 8), (2, 0)])
def test_one_token_and_no_token(batch: int, tokens: int) -> None:
    model = ready(Encoder([Spelt(fused) for _ in range(2)], read="all"), 1.5)
    x = torch.randn(batch, tokens, 12, dtype=torch.float64)
    with torch.no_grad():
        got = compiled(model, on_failure="raise")(x)
        assert torch.equal(got, model(x))
