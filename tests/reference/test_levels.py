"""Levels as numbers: the arithmetic of plans, and nothing else."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from tokenpass.plan.levels import TOKENS, evaluator, level_expression
from tokenpass.reference.levels import level_count


@pytest.mark.parametrize(
    ("level", "count"),
    [
        ("12", 12),
        ("tokens", 100),
        (" tokens - 30 ", 70),
        ("-tokens + 130", 30),
        ("16*floor(3*tokens/64)", 64),
        ("tokens//3", 33),
        ("floor(29*tokens/100)", 29),
        ("ceiling(tokens/3)", 34),
        ("Max(floor(tokens/3), 40)", 40),
        ("Min(tokens, 40, 7)", 7),
        ("tokens - Mod(tokens, 16)", 96),
        ("tokens % 16", 4),
        ("0.5*tokens", 50),
    ],
)
def test_arithmetic(level: str, count: int) -> None:
    assert level_count(level, 100) == count


@pytest.mark.parametrize(
    "level",
    [
        "",
        "token",
        "tokens +",
        "tokens ** 2",
        "__import__('os').getpid()",
        "tokens.__class__",
        "(lambda: 1)()",
        "[tokens][0]",
        "'7'",
        "True",
        "floor()",
        "floor(x=1)",
        "abs(tokens)",
        "1 if tokens else 2",
        "tokens\x00",
        "(" * 500,
    ],
)
def test_all_else_is_refused(level: str) -> None:
    with pytest.raises(ValueError, match="level"):
        level_count(level, 100)


def test_a_division_by_zero_is_one() -> None:
    with pytest.raises(ZeroDivisionError):
        level_count("tokens // (tokens - 100)", 100)


@given(
    count=st.integers(1, 200),
    full=st.integers(2, 200),
    now=st.integers(2, 4000),
    low=st.integers(0, 9),
)
def test_levels_of_plans_agree_with_the_rewriter(count: int, full: int, now: int, low: int) -> None:
    share = sympy.Rational(count, full)
    level = sympy.Max(sympy.floor(TOKENS * share.p / share.q), low + 1)
    assert level_count(str(level), now) == evaluator(level)(now)
    assert level_count(str(level_expression(count, full, low, False)), now) == count
