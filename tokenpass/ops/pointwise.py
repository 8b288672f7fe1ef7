"""Pointwise expressions: the text around an operator, `mul(square(relu(a0)), a1)`.

A kernel computes them without storing what lies between. `a0`, `a1`, ... are the operator's inputs,
`y` is what it computed; all else are the functions of `FUNCTIONS` and numbers. The text is parsed
and checked, never run: sources are made from the parsed form, by the table's own words alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tokenpass.errors import UserError, nearest
from tokenpass.ops.pointwise_functions import FUNCTIONS, MOST_POWER

MOST_NODES = 256
MOST_DEPTH = 64
TOKEN = re.compile(r"[a-z_][a-z_0-9]*|[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf)|[(),]")
INPUT = re.compile(r"a(0|[1-9][0-9]?)")


@dataclass(frozen=True)
class Input:
    """The operator's input at a place."""

    index: int

    def __str__(self) -> str:
        return f"a{self.index}"


@dataclass(frozen=True)
class Computed:
    """What the operator itself computed."""

    def __str__(self) -> str:
        return "y"


@dataclass(frozen=True, eq=False)
class Number:
    """A float32 constant; 0.0 and -0.0 are two."""

    value: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and self.value.hex() == other.value.hex()

    def __hash__(self) -> int:
        return hash(self.value.hex())

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True)
class Call:
    """A function of `FUNCTIONS` on other expressions; its text is the expression's one spelling."""

    function: str
    arguments: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(map(str, self.arguments))})"


Expression = Input | Computed | Number | Call
Y = Computed()


class PointwiseError(UserError):
    """A pointwise text that cannot be read; says where and what would be."""


@lru_cache(maxsize=4096)
def parse(text: str) -> Expression:
    """The expression that `text` spells.

    Raises PointwiseError for anything else: unknown names, wrong numbers of arguments, more than
    `MOST_NODES` parts or `MOST_DEPTH` parentheses within each other.
    """
    words = _words(text)
    expression, rest = _expression(text, words, 0)
    if rest != len(words):
        raise PointwiseError(f"pointwise text {_short(text)}: {words[rest]!r} after its end")
    return expression


def _words(text: str) -> list[str]:
    words: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == " ":
            at += 1
            continue
        found = TOKEN.match(text, at)
        if found is None:
            raise PointwiseError(
                f"pointwise text {_short(text)}: unexpected {text[at]!r} at {at}; write functions, "
                "numbers, a0, a1, ... and y"
            )
        words.append(found[0])
        at = found.end()
        if len(words) > 4 * MOST_NODES:
            raise PointwiseError(f"pointwise text {_short(text)}: over {MOST_NODES} parts")
    return words


def _expression(text: str, words: Sequence[str], at: int, depth: int = 0) -> tuple[Expression, int]:
    """The expression that starts at word `at`, and the place after it."""
    if depth > MOST_DEPTH:
        raise PointwiseError(f"pointwise text {_short(text)}: over {MOST_DEPTH} levels deep")
    if at >= len(words):
        raise PointwiseError(f"pointwise text {_short(text)}: it ends too early")
    word = words[at]
    if word == "y":
        return Y, at + 1
    if found := INPUT.fullmatch(word):
        return Input(int(found[1])), at + 1
    if word[0] in "+-0123456789" or word == "inf":
        return number(float(word)), at + 1
    if word not in FUNCTIONS:
        raise PointwiseError(
            f"pointwise text {_short(text)}: {word!r} is no function, input or number"
            f"{nearest(word, FUNCTIONS)}"
        )
    arguments: list[Expression] = []
    separator, at = "(", at + 1
    while at < len(words) and words[at] == separator:
        argument, at = _expression(text, words, at + 1, depth + 1)
        arguments.append(argument)
        separator = ","
    if not arguments or at >= len(words) or words[at] != ")":
        raise PointwiseError(f"pointwise text {_short(text)}: {word} needs (arguments)")
    return call(word, *arguments), at + 1


def number(value: float) -> Number:
    """A constant, rounded to float32 as it is computed with. Raises PointwiseError for NaN."""
    if math.isnan(value):
        raise PointwiseError("a pointwise constant is NaN; expected a number or inf")
    return Number(float(torch.tensor(value, dtype=torch.float32)))


def call(function: str, *arguments: Expression) -> Call:
    """`function` on `arguments`. Raises PointwiseError where they do not fit it."""
    if function not in FUNCTIONS:
        raise PointwiseError(f"{function!r} is no pointwise function{nearest(function, FUNCTIONS)}")
    wanted = FUNCTIONS[function].arity
    if len(arguments) != wanted:
        raise PointwiseError(f"{function} takes {wanted} arguments, got {len(arguments)}")
    if function == "pow":
        exponent = arguments[1]
        if (
            not isinstance(exponent, Number)
            or not exponent.value.is_integer()
            or not abs(exponent.value) <= MOST_POWER
        ):
            raise PointwiseError(
                f"pow takes a whole number of at most {MOST_POWER} as exponent, got {exponent}"
            )
    return Call(function, arguments)


def parts(expression: Expression) -> Iterator[Expression]:
    """Every part of an expression, arguments before the calls on them; equal ones repeat."""
    if isinstance(expression, Call):
        for argument in expression.arguments:
            yield from parts(argument)
    yield expression


def check_text(operator: str, name: str, text: str, inputs: int, computed: bool) -> Expression:
    """The expression of an operator's argument `name`, reading `inputs` inputs at most.

    Raises PointwiseError where it does not parse, or reads what there is not (`y` with `computed`
    alone).
    """
    expression = parse(text)
    for part in parts(expression):
        if isinstance(part, Input) and part.index >= inputs:
            raise PointwiseError(
                f"tokenpass::{operator}: {name} reads {part}, but there are {inputs} inputs"
            )
        if isinstance(part, Computed) and not computed:
            raise PointwiseError(f"tokenpass::{operator}: {name} comes first, there is no y yet")
    return expression


def evaluate(
    expression: Expression, inputs: Sequence[Tensor], computed: Tensor | None = None
) -> Tensor:
    """The expression in float32 on `inputs` (broadcast against each other) and `computed`."""
    if isinstance(expression, Input):
        return inputs[expression.index].float()
    if isinstance(expression, Computed):
        if computed is None:
            raise PointwiseError("y is read where nothing has been computed")
        return computed.float()
    if isinstance(expression, Number):
        like = computed if computed is not None else inputs[0] if inputs else None
        device = like.device if like is not None else None
        return torch.full((), expression.value, dtype=torch.float32, device=device)
    arguments = (evaluate(argument, inputs, computed) for argument in expression.arguments)
    return FUNCTIONS[expression.function].torch(*arguments)


def constant(expression: Expression) -> float | None:
    """The number that an expression is which reads nothing; None for one that reads."""
    if isinstance(expression, Number):
        return expression.value
    if any(isinstance(part, Input | Computed) for part in parts(expression)):
        return None
    return float(evaluate(expression, ()))


def known_value(expression: Expression, known: Mapping[Expression, float]) -> float | None:
    """What the expression is wherever its parts have the `known` values; None where that varies.

    Supposes that what is not known is finite: 0 * a is 0.
    """
    if expression in known:
        return known[expression]
    if isinstance(expression, Number):
        return expression.value
    if not isinstance(expression, Call):
        return None
    function = FUNCTIONS[expression.function]
    values = [known_value(argument, known) for argument in expression.arguments]
    if any(values[place] == 0.0 for place in function.absorbing):
        return 0.0
    choices = {values[place] for place in function.choices}
    if len(choices) == 1 and None not in choices:
        return choices.pop()
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    return float(function.torch(*(torch.tensor(value) for value in numbers)))


def is_zero_where(expression: Expression, zeros: Sequence[Expression]) -> bool:
    """Whether the expression is 0 wherever all of `zeros` are, the others being finite."""
    return known_value(expression, dict.fromkeys(zeros, 0.0)) == 0.0


def flops(expression: Expression) -> int:
    """Operations for one element, special functions counted as several."""
    distinct = set(parts(expression))
    return sum(FUNCTIONS[part.function].flops for part in distinct if isinstance(part, Call))


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
