"""The comparison of plans with their reference notices what either side can get wrong.

Each mutant is one line of an edit's action, or of the reference, written wrongly: the two then
differ. That they agree otherwise is tested in `test_plans_against_reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.models.harness import falling, family
from tests.models.test_plans_against_reference import EVEN, KEYS, MERGE, check
from tokenpass.passes.token_reduction import token_merge, token_prune
from tokenpass.passes.token_reduction.signals import SiteSignals
from tokenpass.reference import interpreter
from tokenpass.reference.groups import Groups
from tokenpass.reference.interpreter import Reference
from tokenpass.rewrite.reduction import Reduction

Patch = Callable[[pytest.MonkeyPatch], None]
Plan = tuple[tuple[str, str], ...]


def merged(change: Callable[[Reduction], dict[str, Any]]) -> Patch:
    """Merges give another reduction."""
    return after(token_merge, "merge_tokens", lambda out: replace(out, **change(out)))


def pruned(change: Callable[[Reduction], dict[str, Any]]) -> Patch:
    """Prunes give another reduction."""
    return after(token_prune, "prune_tokens", lambda out: replace(out, **change(out)))


def after(owner: Any, name: str, change: Callable[[Any], Any]) -> Patch:
    """What a function returns is changed."""
    true = getattr(owner, name)
    return lambda patch: patch.setattr(owner, name, lambda *args: change(true(*args)))


def instead(owner: Any, name: str, other: Any) -> Patch:
    """Something else stands under a name."""
    return lambda patch: patch.setattr(owner, name, other)


def unweighted(out: Reduction) -> dict[str, Any]:
    return {"reduce": replace(out.reduce, weights=torch.ones_like(out.reduce.weights))}


def turned(out: Reduction) -> dict[str, Any]:
    return {"reduce": replace(out.reduce, index=out.reduce.index.flip(1))}


TWICE, THEN_PRUNE = (MERGE, MERGE), (MERGE, KEYS)
ACTIONS: dict[str, tuple[str, Plan, Patch]] = {
    "sizes are forgotten": ("vit", TWICE, merged(lambda out: {"sizes": None, "logs": None})),
    "log sizes are left out": (
        "vit",
        TWICE,
        merged(lambda out: {"logs": torch.zeros_like(out.sizes)}),
    ),
    "shares are not normalised": ("vit", TWICE, merged(unweighted)),
    "members come back as another": (
        "bert_masked_words",
        TWICE,
        merged(lambda out: {"representative": out.representative.roll(1, 1)}),
    ),
    "a merged token stands at its first member": (
        "llama",
        TWICE,
        merged(lambda out: {"latest": lambda: out.reduce.kept.sort(1).values}),
    ),
    "padding is not carried on": ("bert_padded", THEN_PRUNE, merged(lambda out: {"padding": None})),
    "padding counts in sizes": (
        "bert_padded",
        TWICE,
        merged(lambda out: {"sizes": out.sizes.clamp_min(1), "logs": None}),
    ),
    "sizes stay where they were": (
        "vit",
        THEN_PRUNE,
        pruned(lambda out: {"sizes": out.parent.sizes[:, : out.count]}),
    ),
    "kept tokens are out of order": ("causal_stream", (EVEN, EVEN), pruned(turned)),
    "who left comes back as nothing": (
        "bert_masked_words",
        (KEYS,),
        pruned(lambda out: {"saved": torch.zeros_like(out.saved)}),
    ),
    "protected tokens may leave": (
        "vit",
        (KEYS, KEYS),
        instead(SiteSignals, "protected", lambda self: None),
    ),
    "protected tokens may be merged": (
        "vit",
        TWICE,
        instead(SiteSignals, "protected_places", lambda self: None),
    ),
}
REFERENCE: dict[str, tuple[str, Plan, Patch]] = {
    "who left does not come back": (
        "bert_masked_words",
        (KEYS,),
        instead(Reference, "bring_back", lambda self, node, value: value),
    ),
    "every group counts once": (
        "vit",
        TWICE,
        instead(Groups, "sizes", lambda self: torch.ones_like(self.seats())),
    ),
    "padding is a token": (
        "bert_padded",
        TWICE,
        instead(Reference, "padding", lambda self, attention: None),
    ),
    "nothing is protected": (
        "vit",
        (KEYS, KEYS),
        instead(
            Reference,
            "protected",
            lambda self, site, edit: torch.zeros_like(
                self.groups[site.stream].seats(), dtype=torch.bool
            ),
        ),
    ),
    "scores of another order": (
        "llama",
        (KEYS,),
        instead(
            interpreter,
            "keep_best",
            lambda score, count, *rest: torch.arange(count).expand(len(score), -1),
        ),
    ),
}


@pytest.mark.parametrize("mutant", [*ACTIONS, *REFERENCE])
def test_mutant_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, plan, patch = (ACTIONS | REFERENCE)[mutant]
    edits = falling(family(name)[2], plan)
    patch(monkeypatch)
    with pytest.raises(AssertionError, match="relative"):
        check(name, edits)
