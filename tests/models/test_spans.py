"""Token spans: tokens outside one never leave, whatever the pass, the length or the model."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.examine import HALF, planned, reference_error
from tests.models.harness import Graph, capture_calls, family, made, relative
from tests.models.test_generate import decoder, prompt
from tests.models.test_vision_language import llava
from tokenpass.edits import Edit, Plan
from tokenpass.errors import OptionError, PlanMismatchError
from tokenpass.pipeline.facts import reference_of
from tokenpass.report import last_reports

OPTIONS = {"lowering": "eager", "objective": "flops", "on_failure": "raise"}
MERGE = [{"token_merge": {}}]
ROW = [{"token_prune": {"policy": "attention_row"}}]
KEYS = [{"token_prune": {"policy": "key_norm"}}]


def lossy(plan: Plan) -> list[Edit]:
    """The edits that lose something."""
    return [edit for edit in plan.edits if edit.pass_name != "dead_tokens"]


def length(graph: Graph) -> int:
    """Tokens of the first stream."""
    return int(graph.view.streams[0].axis.size)


def stays(graph: Graph, plan: Any) -> Tensor:
    """`[batch, tokens]`: which tokens are still by themselves when the graph has run."""
    reference = reference_of(plan)
    left: list[Tensor] = []
    carry_out = reference.carry_out

    def watched(edit: Edit, site: Any, value: Tensor) -> Tensor:
        value = carry_out(edit, site, value)
        groups = reference.groups[site.stream]
        alone = torch.stack(
            [torch.tensor([(row == at).sum() == 1 for at in row]) for row in groups.seat]
        )
        left.append(alone & groups.present)
        return value

    reference.carry_out = watched
    with torch.no_grad():
        reference.run(*graph.inputs)
    return left[-1]


def padding(graph: Graph) -> Tensor:
    """`[batch, tokens]`: which tokens the call's mask hides."""
    for value in graph.inputs:
        if (
            isinstance(value, Tensor)
            and value.dtype == torch.long
            and set(value.unique().tolist()) == {0, 1}
        ):
            return value == 0
    return torch.zeros(1, 1, dtype=torch.bool)


@pytest.mark.parametrize("passes", [MERGE, ROW, KEYS], ids=["merge", "row", "keys"])
@pytest.mark.parametrize("name", ["llama", "bert_padded", "vit"])
@pytest.mark.parametrize("cut", [(0.2, 0.8), (0.0, 0.6), (0.5, 1.0)])
def test_tokens_outside_stay(name: str, passes: list[Any], cut: tuple[float, float]) -> None:
    _, _, graph = family(name)
    start, stop = (int(edge * length(graph)) for edge in cut)
    plan = planned(graph, **HALF, passes=passes, spans={"image": [start, stop]})
    edits = lossy(plan.plan)
    assert edits and all(edit.span == ((start, stop),) for edit in edits)
    assert reference_error(graph, plan) < 1e-9
    alone = stays(graph, plan)
    alone |= padding(graph)  # which leaves first, wherever it stands
    assert alone[:, :start].all() and alone[:, stop:].all()
    assert not alone[:, start:stop].all()


@pytest.mark.parametrize("passes", [MERGE, KEYS], ids=["merge", "keys"])
def test_several_pieces(passes: list[Any]) -> None:
    _, _, graph = family("vit")
    spans = {"first": [2, 7], "second": [9, 12]}
    plan = planned(graph, **HALF, passes=passes, spans=spans)
    assert lossy(plan.plan) and reference_error(graph, plan) < 1e-9
    alone = stays(graph, plan)
    inside = torch.zeros_like(alone)
    inside[:, 2:7] = inside[:, 9:12] = True
    assert alone[~inside].all() and not alone[inside].all()


def test_a_share_counts_the_span() -> None:
    _, _, graph = family("llama")
    tokens = length(graph)
    passes = [{"token_prune": {"policy": "attention_row", "keep_ratio": 0.5, "span": [4, 14]}}]
    (first, *_) = lossy(planned(graph, budget=1.0, objective="flops", passes=passes).plan)
    assert int(first.level) == tokens - 5


def test_one_name_of_several() -> None:
    _, _, graph = family("llama")
    spans = {"image": [2, 9], "sound": [10, 16]}
    passes = [{"token_prune": {"policy": "attention_row", "span": "sound"}}]
    plan = planned(graph, **HALF, passes=passes, spans=spans)
    assert {edit.span for edit in lossy(plan.plan)} == {((10, 16),)}


@pytest.mark.parametrize("passes", [None, MERGE, ROW, KEYS])
def test_a_span_outside_the_prompt_is_an_error(passes: Any) -> None:
    _, _, graph = family("llama")
    tokens = length(graph)
    given = {} if passes is None else {"passes": passes}
    for span in ([5, tokens + 1], [tokens, tokens + 9], [[1, 3], [tokens + 2, tokens + 3]]):
        text = re.escape(f"ends outside the prompt, which has {tokens} tokens")
        with pytest.raises(OptionError, match=text):
            planned(graph, **HALF, **given, spans={"image": span})
    assert lossy(planned(graph, **HALF, **given, spans={"image": [5, tokens]}).plan)


def test_a_pinned_span_outside_the_prompt_is_an_error() -> None:
    _, _, graph = family("llama")
    plan = planned(graph, **HALF, passes=ROW, spans={"image": [2, 15]})
    (edit, *_) = lossy(plan.plan)
    far = Edit(edit.pass_name, edit.site, edit.policy, edit.level, ((2, 1000),))
    with pytest.raises(PlanMismatchError, match="span_outside"):
        graph.planned([far])
    assert reference_error(graph, graph.planned([edit])) < 1e-9


def test_different_spans_on_the_same_tokens_are_an_error() -> None:
    _, _, graph = family("llama")
    passes = [{"token_merge": {"span": [2, 9]}}, {"token_prune": {"span": [3, 9]}}]
    with pytest.raises(OptionError, match="different spans"):
        planned(graph, **HALF, passes=passes)


def test_every_length_that_holds_the_span() -> None:
    """At most two compiles for all lengths; a shorter prompt is an error, not a wrong number."""
    model = decoder()
    draw = random.Random(3)
    options = {**OPTIONS, "budget": 0.6, "spans": {"image": [3, 19]}, "passes": ROW}
    run = torch.compile(model, backend="tokenpass", dynamic=True, options=options)
    fixed = torch.compile(model, backend="tokenpass", options=options)
    for tokens in [24, 23, *(draw.randint(20, 90) for _ in range(10)), 19]:
        ids = torch.randint(1, 60, (2, tokens))
        call = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
        with torch.no_grad():
            got = run(**call).logits
        assert got.isfinite().all()
    assert len(last_reports()) <= 2
    assert {report.outcome for report in last_reports()} == {"edited"}
    with torch.no_grad(), pytest.raises(OptionError, match="outside the prompt, which has 18"):
        run(input_ids=torch.randint(1, 60, (2, 18)), use_cache=False, logits_to_keep=1)
    torch._dynamo.reset()
    ids = torch.randint(1, 60, (2, 33))
    call = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    with torch.no_grad():
        apart = fixed(**call).logits
        torch._dynamo.reset()
        assert relative([run(**call).logits], [apart]) < 0.5


def test_the_picture_of_a_prompt_is_given_as_a_span() -> None:
    """The vision tower has fewer tokens than the span's end, and is left alone with a reason."""
    model, call = made(llava)
    with torch.no_grad():
        model(**call)  # transformers installs hooks on the first call, under a lock
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        (graph,) = capture_calls(model, [call], fullgraph=True)
    half = planned(graph, **HALF, spans={"image": [4, 29]})
    edits = lossy(half.plan)
    assert edits and all("language_model" in edit.site for edit in edits)
    assert reference_error(graph, half) < 1e-9
    assert "span_outside" in {r.code for r in half.plan.rejections}


def test_decoding_steps_do_not_miss_the_span() -> None:
    """The prompt is edited inside its span; the steps that follow see one token each."""
    model, ids = decoder(), prompt(5)[:1]
    given = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    options = {**OPTIONS, "budget": 0.6, "shorter_cache": True, "spans": {"image": [2, 20]}}
    model.compile(backend="tokenpass", options=options, dynamic=True)
    got = model.generate(ids, **given)
    assert got.shape == (1, 28)
    assert last_reports()[0].outcome == "edited"
    assert all(e.span == ((2, 20),) for e in lossy(last_reports()[0].plan))


def test_a_budget_that_exact_edits_meet_needs_no_excuse() -> None:
    _, _, graph = family("llama")
    exact = planned(graph, budget=1.0, objective="flops")
    met = planned(graph, budget=(1 + exact.plan.share) / 2, objective="flops")
    assert met.plan.edits == exact.plan.edits and exact.plan.share < 1
    assert not met.plan.notes
