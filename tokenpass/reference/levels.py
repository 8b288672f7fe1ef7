"""Levels of edits as numbers: a walk over their arithmetic, which runs nothing that they say."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Number = int | float | Fraction


def divided(top: Number, bottom: Number) -> Number:
    """A quotient, exact where both are: `floor(29 * tokens / 100)` has no rounding."""
    if isinstance(top, float) or isinstance(bottom, float):
        return top / bottom
    return Fraction(top) / Fraction(bottom)


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: divided,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
WORDS: dict[str, Callable[..., Number]] = {
    "floor": math.floor,
    "ceiling": math.ceil,
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
}


def level_count(level: str, tokens: int) -> int:
    """The count that a level stands for in a stream of `tokens`.

    Raises `ValueError` for whatever is no arithmetic over `tokens`, `ZeroDivisionError` where it
    divides by zero.
    """
    try:
        tree = ast.parse(level.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"level: expected arithmetic over `tokens`, got {level!r}") from error
    return int(value_of(tree.body, tokens))


def value_of(node: ast.expr, tokens: int) -> Number:
    """The value of one part of a level."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id="tokens"):
            return tokens
        case ast.UnaryOp(op=sign, operand=part) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](value_of(part, tokens))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](value_of(left, tokens), value_of(right, tokens))
        case ast.Call(func=ast.Name(id=word), args=[_, *_] as parts, keywords=[]) if word in WORDS:
            return WORDS[word](*(value_of(part, tokens) for part in parts))
    raise ValueError(f"level: {ast.unparse(node)!r} may not stand in it")
