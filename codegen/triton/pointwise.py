"""Pointwise expressions in Triton: statements over blocks, and the functions that they call.

NaN and infinities pass as they do in torch. What is a difference of numbers near 1 (gelu of large
negative numbers) is within 1e-6, as torch's own is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tokenpass.ops.pointwise import Call, Computed, Expression, Input, Number, constant, parts
from tokenpass.ops.pointwise_functions import FUNCTIONS

MATHEMATICS = """\
@triton.jit
def relu(x):
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def maximum(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def minimum(a, b):
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def power(x, EXPONENT: tl.constexpr):
    result = tl.full(x.shape, 1.0, tl.float32) if EXPONENT == 0 else x
    for _ in tl.static_range(1, EXPONENT if EXPONENT > 0 else -EXPONENT):
        result = result * x
    return 1.0 / result if EXPONENT < 0 else result


@triton.jit
def hyperbolic(x):
    size = tl.abs(x)
    z = x * x
    near = x + x * z * (-0.33333325 + z * (0.13332996 + z * (-0.053922124 + z * (
        0.021575842 + z * (-0.0078921895 + z * 0.0019018042)))))
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.7, near, tl.where(x < 0.0, -far, far))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1.0 + hyperbolic(inner))
"""
"""Functions of a module that has imported triton and triton.language as tl."""


def literal(value: float) -> str:
    """A float32 constant, exactly."""
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def statements(expression: Expression, read: Callable[[Input | Computed], str]) -> tuple[str, ...]:
    """Statements that end with the definition of `result`.

    `read` gives the float32 block that stands for an input or for y. Equal parts are computed once.
    """
    names: dict[Expression, str] = {}
    lines: list[str] = []
    for part in parts(expression):
        if part in names:
            continue
        if (value := constant(part)) is not None:
            names[part] = literal(value)
            continue
        if isinstance(part, Number):  # a constant, found above
            continue
        if isinstance(part, Call):
            given = [names[argument] for argument in part.arguments]
            if part.function == "pow" and isinstance(part.arguments[1], Number):
                given[1] = str(int(part.arguments[1].value))
            text = FUNCTIONS[part.function].triton.format(*given)
        else:
            text = read(part)
        names[part] = f"t{len(lines)}"
        lines.append(f"{names[part]} = {text}")
    return (*lines, f"result = {names[expression]}")
