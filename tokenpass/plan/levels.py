"""Levels: counts of tokens as expressions of the stream's length, and back to counts."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import sympy
import torch

from tokenpass.graph.axis import Size

TOKENS = sympy.Symbol("tokens", integer=True, positive=True)


def level_expression(count: int, size: Size, never_below: int, spanned: bool) -> sympy.Expr:
    """A count as an expression of the stream's length: constant only where that is constant.

    A span has the same tokens at every length, and loses as many.
    """
    if isinstance(size, int):
        return sympy.Integer(count)
    if spanned:
        return TOKENS - (int(size.node.hint) - count)
    share = sympy.Rational(count, int(size.node.hint))
    least = never_below + 1
    return sympy.Max(sympy.floor(TOKENS * share.p / share.q), least)


def evaluator(expression: sympy.Expr) -> Callable[[Size], Size]:
    """The level for a stream's length, which may be symbolic."""
    if expression.is_Integer:
        return constant(int(expression))
    if not expression.free_symbols:
        return constant(math.floor(expression))
    modules = {
        "floor_div": operator.floordiv,
        "Max": torch.sym_max,
        "Min": torch.sym_min,
        "Mod": operator.mod,
        "ceiling": math.ceil,
    }
    return sympy.lambdify([TOKENS], as_floor_division(expression), [modules, "math"])


def as_floor_division(expression: sympy.Expr) -> sympy.Basic:
    """`floor(a * tokens / b)` as a call on integers, which keeps sizes symbolic and exact."""
    divide = sympy.Function("floor_div")

    def rewrite_floor(argument: sympy.Expr) -> sympy.Expr:
        top, bottom = sympy.fraction(sympy.together(argument))
        return divide(top, bottom)

    return expression.replace(sympy.floor, rewrite_floor)


def constant(level: Size) -> Callable[[Size], Size]:
    """A level that does not depend on the length."""
    return lambda tokens: level
