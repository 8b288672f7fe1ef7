"""Compile a fusion group's sympy expressions once per form: groups that differ in symbol names
alone have one form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy

from tokenpass.cost.fusion import FusionGroup
from tokenpass.cost.group_time import GroupSizes

SizeFunction = Callable[[tuple[int, ...]], GroupSizes]

# torch's integer functions of sizes, by the names under which they are printed.
_FUNCTIONS = {
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "CeilToInt": math.ceil,
    "CeilDiv": lambda a, b: -(-a // b),
    "FloorToInt": math.floor,
    "TruncToInt": math.trunc,
    "PythonMod": lambda a, b: a % b,
    "Mod": lambda a, b: a % b,
    "ModularIndexing": lambda a, b, c: (a // b) % c,
    "IntTrueDiv": lambda a, b: a / b,
    "FloatTrueDiv": lambda a, b: a / b,
    "FloatPow": lambda a, b: a**b,
    "PowByNatural": lambda a, b: a**b,
    "ToFloat": float,
    "Identity": lambda a: a,
    "Max": max,
    "Min": min,
}


def size_function(
    group: FusionGroup, forms: dict[Any, SizeFunction]
) -> tuple[SizeFunction, tuple[sympy.Symbol, ...]]:
    """The group's compiled form (from `forms` where it is known) and the symbols to give it."""
    symbols = group.symbols
    places = {
        symbol: sympy.Symbol(f"_{index}", integer=True, positive=True)
        for index, symbol in enumerate(symbols)
    }
    amounts = [amount for _, amount in group.elements]
    moved = group.bytes_read + group.bytes_written
    expressions = [group.flops, moved, sympy.sympify(group.calls), *group.dims, *amounts]
    if symbols:
        expressions = [part.xreplace(places) for part in expressions]
    kinds = tuple(kind for kind, _ in group.elements)
    key = (group.work, group.dtype, kinds, len(group.dims), tuple(expressions))
    if key not in forms:
        forms[key] = _compile(group, kinds, tuple(places.values()), expressions)
    return forms[key], symbols


def number_function(
    symbols: Sequence[sympy.Symbol], expressions: Sequence[sympy.Basic]
) -> Callable[[tuple[int, ...]], list[float]]:
    """Several expressions as one function of the symbols' values."""
    places = {
        symbol: sympy.Symbol(f"_{index}", integer=True, positive=True)
        for index, symbol in enumerate(symbols)
    }
    renamed = [part.xreplace(places) for part in expressions] if symbols else expressions
    function = sympy.lambdify(
        tuple(places.values()), renamed, modules=[_FUNCTIONS, "math"], cse=True
    )
    return lambda values: [float(value) for value in function(*values)]


def _compile(
    group: FusionGroup,
    kinds: tuple[Any, ...],
    places: tuple[sympy.Symbol, ...],
    expressions: Sequence[sympy.Basic],
) -> SizeFunction:
    function = sympy.lambdify(places, expressions, modules=[_FUNCTIONS, "math"], cse=True)
    work, dtype, count = group.work, group.dtype, len(group.dims)

    def sizes(values: tuple[int, ...]) -> GroupSizes:
        flops, moved, calls, *rest = function(*values)
        dims, amounts = rest[:count], rest[count:]
        counted = tuple(zip(kinds, map(float, amounts), strict=True))
        return GroupSizes(
            work, dtype, float(flops), tuple(map(float, dims)), counted, float(moved), int(calls)
        )

    return sizes
