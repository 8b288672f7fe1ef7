"""Planted faults: each is found by facts alone, and told as what changed and why."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.check import models
from tokenpass.check.baseline import CaseBaseline, Fingerprint, fingerprint
from tokenpass.check.differences import Difference, differences
from tokenpass.check.facts import CaseFacts, case_facts
from tokenpass.graph import axis_rules
from tokenpass.options import read_options
from tokenpass.passes.token_reduction.token_merge import TokenMerge

OPTIONS: dict[str, Any] = {"budget": 0.6, "objective": "flops", "device_profile": "generic-cpu"}


def facts(make: Callable[[], Any] = models.encoder, **more: Any) -> CaseFacts:
    model, args, kwargs = make()
    config = read_options({**OPTIONS, **more})
    calls = [((), call) for call in models.shapes()]
    return case_facts(model, (args, kwargs), calls, config)


@pytest.fixture(scope="module")
def before() -> CaseFacts:
    return facts()


def stored(found: CaseFacts, **other: Any) -> CaseBaseline:
    given = {"model": "models:encoder", "options": {}, "facts": found}
    return CaseBaseline(**given | {"fingerprint": fingerprint()} | other)


def found(before: CaseFacts, after: CaseFacts) -> dict[str, Difference]:
    now = fingerprint()
    return {one.fact: one for one in differences(stored(before), after, {}, now, True)}


def test_the_same_is_the_same(before: CaseFacts) -> None:
    assert before.graphs[0].outcome == "edited" and before.graphs[0].kernels
    assert before.recompilations == 1, "the second length makes it dynamic"
    assert facts() == before
    torch.set_num_threads(1)
    try:
        assert facts() == before, "threads of this machine are no fact"
    finally:
        torch.set_num_threads(2)


def test_an_edit_that_is_lost(before: CaseFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TokenMerge.candidates

    def fewer(self: Any, view: Any, context: Any) -> Any:
        found = whole(self, view, context)
        return type(found)(found.candidates[1:], found.rejections)

    monkeypatch.setattr(TokenMerge, "candidates", fewer)
    changed = found(before, facts())
    assert "plan" in changed and any(fact.startswith("tokens of layer") for fact in changed)
    assert changed["plan"].why == "the model's code, or tokenpass itself, changed"


def test_a_new_graph_break(before: CaseFacts) -> None:
    changed = found(before, facts(models.broken))
    assert (changed["graphs in the call"].before, changed["graphs in the call"].after) == (1, 2)
    assert changed["graph breaks"].after == 1


def test_a_rule_that_is_removed(before: CaseFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = dict(axis_rules.AXIS_RULES)
    del rules[torch.ops.aten.layer_norm.default]
    monkeypatch.setattr(axis_rules, "AXIS_RULES", rules)
    changed = found(before, facts())
    assert "plan" in changed


def test_one_layer_s_count() -> None:
    one, other = (
        facts(passes=[{"token_merge": {"layers": 1, "keep_ratio": ratio}}]) for ratio in (0.5, 0.6)
    )
    changed = found(one, other)
    assert changed["tokens of layer 1"].before != changed["tokens of layer 1"].after
    assert "tokens of layer 0" not in changed


def test_a_fallback(before: CaseFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(import_module("tokenpass.backend"), "make_plan", fails)
    changed = found(before, facts())
    assert (changed["outcome"].before, changed["outcome"].after) == ("edited", "fallback")
    assert "a defect" in changed["cause of the fallback"].after


def test_a_recompilation_for_every_length(before: CaseFacts) -> None:
    changed = found(before, facts(models.specialised))
    told = changed["graphs compiled anew for other shapes"]
    assert (told.before, told.after) == (1, 3)


def test_a_kernel_that_is_lost(before: CaseFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenpass.pipeline.kernels.TEMPLATES", ())
    changed = found(before, facts())
    lost = changed["operators without a kernel"]
    assert lost.after > lost.before
    assert any(fact.startswith("generated kernels, ") for fact in changed)


def test_another_model_is_said_to_be_one(before: CaseFacts) -> None:
    changed = found(before, facts(models.deeper))
    assert {one.why for one in changed.values()} == {"the model or its inputs changed"}
    assert changed["layers"].after == 4


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"options": {"budget": 0.9}}, "the case's options changed"),
        ({"fingerprint": {"torch": "2.0"}}, "torch 2.0 -> "),
        ({"fingerprint": {"transformers": None}}, "transformers None -> "),
        ({"fingerprint": {"tokenpass": "9"}}, "tokenpass 9 -> "),
        ({"fingerprint": {"device": "another"}}, "the model's code"),
    ],
)
def test_why_it_is_likely(before: CaseFacts, given: dict[str, Any], why: str) -> None:
    now = fingerprint()
    if "fingerprint" in given:
        given = {"fingerprint": Fingerprint(**now.model_dump() | given["fingerprint"])}
    other = before.model_copy(update={"graph_breaks": 5})
    (one,) = differences(stored(other, **given), before, {}, now, True)
    assert one.why.startswith(why) and str(one) == "graph breaks: 5 -> 0" and one.better


def test_another_profile(before: CaseFacts) -> None:
    other = before.model_copy(update={"graph_breaks": 5})
    (one,) = differences(stored(other), before, {}, fingerprint(), False)
    assert one.why == "the device profile changed"
