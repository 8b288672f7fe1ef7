"""Every rule's claim, on random shapes, places of the token axis, cuts and dtypes."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tokenpass.graph.axis_rules import AXIS_RULES, PLAIN, find_rule, mutates

from .rule_demand import check_demand
from .rule_examples import EXAMPLES
from .rule_harness import check, check_constants
from .rule_language import T, ex
from .rule_trial import CLAIMS, draw_trial

aten = torch.ops.aten
FAILS_DENSE = {aten.gelu_backward.default}
"""oneDNN refuses operands of different strides."""

UNDEFINED = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}
"""What these give is undefined: there is nothing to compare."""

AMONG_ROWS = {aten._grouped_mm.default}
"""What these claim holds behind a sort of rows alone: `test_row_sets.py`."""

QUICK = settings(
    max_examples=1,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
SEEDS = st.integers(0, 2**32 - 1)


def test_every_rule_has_an_example():
    missing = [
        str(t) for t in AXIS_RULES if not EXAMPLES.get(t) and t not in UNDEFINED | AMONG_ROWS
    ]
    assert not missing, "add example calls to rule_examples.py"
    assert set(EXAMPLES) <= set(AXIS_RULES)


@pytest.mark.parametrize("target", EXAMPLES, ids=str)
@QUICK
@given(seed=SEEDS)
def test_claim_of_every_rule(target, seed):
    """Permuted, selected, merged, weighted and pruned tokens, on every example of the overload."""
    chance = random.Random(seed)
    for example in EXAMPLES[target]:
        for claim in CLAIMS:
            check(draw_trial(example, target, chance, claim))


@pytest.mark.parametrize("target", EXAMPLES, ids=str)
@QUICK
@given(seed=SEEDS)
def test_equal_entries_are_equal(target, seed):
    """A label that calls a dimension constant is believed: any entries may stand for the others."""
    chance = random.Random(seed)
    for example in EXAMPLES[target]:
        check_constants(example, target, chance)


@pytest.mark.parametrize("target", EXAMPLES, ids=str)
@QUICK
@given(seed=SEEDS)
def test_demand_of_every_rule(target, seed):
    """Tokens that a rule does not demand move no output and are not computed."""
    chance = random.Random(seed)
    for example in EXAMPLES[target]:
        check_demand(example, target, chance)


SHAPES = {
    1: [("b n c",), ("n b c",), ("(b n) c",), ("b h n n",)],
    2: [("b n c", "b n c"), ("b n c", "n c"), ("n c", "b n 1"), ("b n c", "c"), ("b 1 c", "n 1")],
    3: [("b n c", "b n c", "b n c"), ("b n 1", "n c", "b 1 c"), ("(b n) c", "c", "c")],
}


def tagged_pointwise():
    """Overloads that torch tags pointwise, with a dtype they take: `(overload, needed, kind)`."""
    for name in dir(aten):
        packet = getattr(aten, name)
        for overload in getattr(packet, "overloads", list)():
            target = getattr(packet, overload)
            arguments = target._schema.arguments
            if target in AXIS_RULES or target in FAILS_DENSE or find_rule(target) is not PLAIN:
                continue
            needed = [str(a.type) for a in arguments if not a.has_default_value()]
            kind = usable_kind(target, needed)
            if kind is not None and not any(a.is_out for a in arguments):
                yield target, needed, kind


def usable_kind(target, needed):
    """The first kind of value on which the overload runs; None if there is none."""
    values = {"float": torch.rand(2), "int": torch.ones(2).long(), "bool": torch.ones(2).bool()}
    for kind, value in values.items():
        args = [value if type_ == "Tensor" else 1 for type_ in needed]
        try:
            if isinstance(target(*args), torch.Tensor):
                return kind
        except (RuntimeError, TypeError, NotImplementedError):
            continue
    return None


POINTWISE = list(tagged_pointwise())


def test_many_pointwise_overloads_are_tried():
    assert len(POINTWISE) > 150
    assert not any(mutates(target) for target, _, _ in POINTWISE)


@pytest.mark.parametrize("part", range(8))
@settings(QUICK, max_examples=1)
@given(seed=SEEDS)
def test_claim_of_tagged_pointwise(part, seed):
    chance = random.Random(seed)
    for target, needed, kind in POINTWISE[part::8]:
        for shapes in SHAPES[min(3, needed.count("Tensor"))]:
            tensors = iter(shapes)
            args = [T(next(tensors), kind) if type_ == "Tensor" else 1 for type_ in needed]
            check(draw_trial(ex(*args), target, chance, chance.choice(CLAIMS)))
