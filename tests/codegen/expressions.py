"""Expressions that both renderings are tested on: each function alone, and combinations."""

from __future__ import annotations

from tokenpass.ops.pointwise import Input, call, number, parse
from tokenpass.ops.pointwise_functions import FUNCTIONS


def single(name):
    """A function on a0, a1, y, a0; several exponents for pow."""
    if name == "pow":
        return [call("pow", Input(0), number(float(n))) for n in (-3, -1, 0, 1, 2, 5, 16)]
    return [call(name, *(Input(0), Input(1), parse("y"), Input(0))[: FUNCTIONS[name].arity])]


COMBINED = [
    "mul(square(relu(a0)), a1)",
    "add(mul(silu(a0), a1), y)",
    "where_gt(abs(a0), 0.5, mul(gelu_tanh(a0), a1), 0.0)",
    "mul(add(a0, a1), add(a0, a1))",
    "add(y, clamp(a0, -0.1, inf))",
    "div(y, add(1.0, exp(neg(maximum(a0, a1)))))",
    "mul(mul(y, 0.1), rsqrt(add(square(a0), 1e-06)))",
    "sub(0.0, -0.0)",
    "3.0",
    "add(mul(exp(1.0), pow(3.0, 2.0)), y)",
    "maximum(y, log(0.0))",
    "y",
]
