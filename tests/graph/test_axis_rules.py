"""Every rule's claim, on random shapes, places of the token axis, cuts and dtypes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenpass.graph.axis_rules import AXIS_RULES

from .rule_examples import EXAMPLES
from .rule_harness import CLAIMS, check, draw_trial

QUICK = settings(
    max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
CASES = [
    pytest.param(target, example, id=f"{target}-{at}")
    for target, examples in EXAMPLES.items()
    for at, example in enumerate(examples)
]


def test_every_rule_has_an_example():
    missing = [str(target) for target in AXIS_RULES if target not in EXAMPLES]
    assert not missing, "add example calls to rule_examples.py"


@pytest.mark.parametrize(("target", "example"), CASES)
@QUICK
@given(chance=st.randoms(use_true_random=False))
def test_claim_of_every_rule(target, example, chance):
    for claim in CLAIMS:
        check(draw_trial(example, target, chance, claim))
