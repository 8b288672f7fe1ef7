"""How single option values are written: shares, layers, patterns and levels, read strictly.

Each reader returns the value in its one normal form or raises a `ValueError` whose text is a hint
(or empty): what was expected stands in the field's description, once.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

LayerRanges = tuple[tuple[int, int], ...]
Spans = tuple[tuple[int, int], ...]
"""Tokens from each start to before each stop, counted from 0; they rise and do not touch."""

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_LAYERS = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")

_LEVEL_FUNCTIONS = frozenset({"floor", "ceiling", "Min", "Max", "Mod"})
_LEVEL_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.UAdd, ast.USub)
_LEVEL_LENGTH = 1000


def word(value: Any) -> str:
    """A name, not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("")
    return value


def share(value: Any) -> float:
    """A share in (0, 1]: a number, or a percentage as text (`"30%"`)."""
    number = _number(value)
    if 1 < number <= 100 and not isinstance(value, str):
        raise ValueError(f'{number:g} percent is written {number / 100:g} or "{number:g}%"')
    if not 0 < number <= 1:
        raise ValueError("")
    return number


def _number(value: Any) -> float:
    if isinstance(value, str):
        percent = _PERCENT.fullmatch(value)
        if percent is None:
            raise ValueError("a number stands without quotes" if _is_number(value) else "")
        return float(percent[1]) / 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("")
    return float(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def positive(value: Any) -> float | None:
    """A finite number above 0, or None."""
    if value is None:
        return None
    if isinstance(value, str) or (number := _number(value)) <= 0:
        raise ValueError("")
    return number


def keep_ratio(value: Any) -> float | Literal["auto"]:
    """`"auto"`, or the share of tokens that stay, in (0, 1)."""
    if value == "auto":
        return "auto"
    number = share(value)
    if number == 1:
        raise ValueError("keeping all tokens is no edit: leave the pass out")
    return number


def sparsity(value: Any) -> float | Literal["auto"]:
    """`"auto"`, or the share of entries left out, in (0, 1)."""
    if value == "auto":
        return "auto"
    number = share(value)
    if number == 1:
        raise ValueError("a share of 1 would leave nothing")
    return number


def layers(value: Any) -> LayerRanges:
    """Layer numbers as ranges that include both ends, sorted, overlaps joined.

    `"2-11"`, `2`, `[0, "2-4"]`: layers count from 0.
    """
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("an empty list would select no layer: leave the pass out")
    joined: list[tuple[int, int]] = []
    for first, last in sorted(map(_layer_range, items)):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def _layer_range(item: Any) -> tuple[int, int]:
    if isinstance(item, str) and (match := _LAYERS.fullmatch(item)):
        first, last = int(match[1]), int(match[2] or match[1])
    elif isinstance(item, tuple) and len(item) == 2:  # the normal form itself
        first, last = map(_layer, item)
    else:
        first = last = _layer(item)
    if last < first:
        raise ValueError(f'a range is written first-last: "{last}-{first}"')
    return first, last


def _layer(item: Any) -> int:
    if isinstance(item, bool) or not isinstance(item, int):
        raise ValueError("")
    if item < 0:
        raise ValueError("layers count from 0")
    return item


def span(value: Any) -> Spans:
    """Token positions `[start, stop]`, the stop not included, or a list of such pairs.

    Sorted, overlaps joined.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("")
    pairs = value if isinstance(value[0], list | tuple) else [value]
    return joined_spans(map(_span, pairs))


def joined_spans(pairs: Iterable[tuple[int, int]]) -> Spans:
    """Spans sorted, those that touch or overlap joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(pairs):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


def _span(pair: Any) -> tuple[int, int]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError("")
    start, stop = pair
    if any(isinstance(at, bool) or not isinstance(at, int) for at in pair):
        raise ValueError("")
    if start < 0:
        raise ValueError("positions count from 0, from the first token of the prompt")
    if stop <= start:
        raise ValueError(f"[{start}, {stop}] holds no token: the stop is not included")
    return start, stop


def named_spans(value: Any) -> dict[str, Spans]:
    """Spans by name."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError("")
    found = {}
    for name, pairs in value.items():
        found[word(name)] = span(pairs)
    return found


def span_or_name(value: Any) -> Spans | str:
    """A span, or the name of one."""
    return word(value) if isinstance(value, str) else span(value)


def patterns(value: Any) -> tuple[str, ...]:
    """Patterns over module paths: globs, or regular expressions that start with `re:`."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError("")
    for item in items:
        if not isinstance(item, str) or not item.removeprefix("re:"):
            raise ValueError("")
        if item.startswith("re:"):
            try:
                re.compile(item.removeprefix("re:"))
            except re.error as error:
                raise ValueError(f"{item!r} is no regular expression: {error}") from error
    return tuple(items)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a module path matches any of the patterns; each must match the whole path."""
    return any(
        re.fullmatch(pattern.removeprefix("re:"), path)
        if pattern.startswith("re:")
        else fnmatchcase(path, pattern)
        for pattern in patterns
    )


def level(value: Any) -> str:
    """The level of a pinned edit: a number, or arithmetic over `tokens`, as text.

    The text is evaluated later, so nothing but numbers, `tokens`, `+ - * / //` and
    floor, ceiling, Min, Max, Mod may stand in it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("")
    text = str(value).strip()
    if len(text) > _LEVEL_LENGTH:
        raise ValueError(f"longer than {_LEVEL_LENGTH} characters")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("") from error
    _check_level(tree.body)
    return text


def _check_level(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("")
        case ast.Constant(value=int()) | ast.Name(id="tokens"):
            return
        case ast.Constant(value=float() as number) if math.isfinite(number):
            return
        case ast.UnaryOp(op=operator, operand=operand) if isinstance(operator, _LEVEL_OPERATORS):
            _check_level(operand)
        case ast.BinOp(left=left, op=operator, right=right) if isinstance(
            operator, _LEVEL_OPERATORS
        ):
            _check_level(left)
            _check_level(right)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if (
            name in _LEVEL_FUNCTIONS
        ):
            for argument in arguments:
                _check_level(argument)
        case _:
            raise ValueError(f"{ast.unparse(node)!r} may not stand in it")
