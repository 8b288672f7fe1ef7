"""The cases, and what their dead tokens allow."""

import pytest

from benchmarks.models import CASES, QUICK_CASES, VIT_B, Stack, find_case, vit_stack


def test_dead_tokens_of_vit_b_allow_the_known_speedup():
    assert vit_stack(**VIT_B).dead_token_speedup() == pytest.approx(1.075, abs=0.001)


def test_dead_tokens_counted_by_hand():
    # One layer of 2 tokens, width 1: q, k, v, o 8, attention 8, MLP 16 = 32 in all; keys and
    # values 4 remain, and one token's share of the whole layer, 16.
    assert Stack(1, 2, 1, 4).dead_token_speedup() == pytest.approx(32 / 20)


def test_cases_have_unique_names_and_are_found():
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(find_case(name).name == name for name in QUICK_CASES)
    with pytest.raises(ValueError, match="there are: vit_s_224_b1"):
        find_case("vit")
