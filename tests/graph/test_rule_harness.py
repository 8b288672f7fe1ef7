"""The harness notices laws that are forgotten below the rules: sizes, positions, samples."""

from __future__ import annotations

import random

import pytest
import torch

from tokenpass.graph import attention_rule
from tokenpass.rewrite.reduction import Reduction

from .rule_examples import EXAMPLES
from .rule_harness import check
from .rule_language import T, ex
from .rule_trial import CLAIMS, draw_trial

aten = torch.ops.aten


def caught(target, examples=None, claims=CLAIMS, seeds=4):
    """Whether some trial fails."""
    for seed in range(seeds):
        chance = random.Random(seed)
        for example in examples or EXAMPLES[target]:
            for claim in claims:
                trial = draw_trial(example, target, chance, claim)
                try:
                    check(trial)
                except Exception:
                    return True
    return False


LAWS = {
    "weight": (aten.mean.dim, aten.sum.dim_IntList, aten.matmul.default),
    "add_log_sizes": (aten.softmax.int,),
}


@pytest.mark.parametrize(("law", "target"), [(law, t) for law, ts in LAWS.items() for t in ts])
def test_forgotten_sizes_are_caught(law, target, monkeypatch):
    monkeypatch.setattr(Reduction, law, lambda self, value, *rest: value)
    assert caught(target)


def test_attention_without_log_sizes_is_caught(monkeypatch):
    monkeypatch.setattr(attention_rule, "with_log_sizes", lambda bias, log_sizes: bias)
    assert caught(aten.scaled_dot_product_attention.default)


def test_causal_attention_without_positions_is_caught(monkeypatch):
    causal = [ex(*[T("b h n d")] * 3, is_causal=True, tokens="mixed")]
    target = aten.scaled_dot_product_attention.default
    assert not caught(target, causal, claims=["permutation"])
    monkeypatch.setattr(attention_rule, "causal_mask", lambda *args: None)
    assert caught(target, causal, claims=["permutation"])


def test_shared_selection_for_per_sample_ones_is_caught(monkeypatch):
    """Selections are per sample: taking every sample's tokens by the first one's index fails."""
    monkeypatch.setattr(Reduction, "per_sample", False)
    assert caught(aten.softmax.int) and caught(aten.cumsum.default)
