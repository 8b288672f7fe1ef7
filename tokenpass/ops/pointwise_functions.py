"""The table of pointwise functions: each one's meaning in torch, C++ and Triton, and its facts.

The next function is one entry here. Names in the C++ and Triton columns that are not the language's
own stand in `codegen/cpp/pointwise.py` and `codegen/triton/pointwise.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_POWER = 16
"""Exponents up to here are products: an error of half a unit in the last place for each factor."""


@dataclass(frozen=True)
class Function:
    """One pointwise function on float32 values.

    `cpp` and `triton` are templates, `{0}` the first argument. Where an argument of `absorbing` is
    0 the result is 0, whatever finite numbers the others are; where all of `choices` are the same
    number it is that number. What else follows from known arguments is found by computing it.
    """

    torch: Callable[..., Tensor]
    arity: int
    cpp: str
    triton: str
    absorbing: tuple[int, ...] = ()
    choices: tuple[int, ...] = ()
    flops: int = 1


def _pow(x: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(x, int(exponent))


def _clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low), high)


def _where_gt(left: Tensor, right: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(left > right, then, otherwise)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


SPECIAL = 10
"""flops of exp and its kin."""

FUNCTIONS: dict[str, Function] = {
    "add": Function(torch.add, 2, "({0} + {1})", "({0} + {1})"),
    "sub": Function(torch.sub, 2, "({0} - {1})", "({0} - {1})"),
    "mul": Function(torch.mul, 2, "({0} * {1})", "({0} * {1})", absorbing=(0, 1)),
    "div": Function(torch.div, 2, "({0} / {1})", "({0} / {1})", absorbing=(0,)),
    "neg": Function(torch.neg, 1, "(-{0})", "(-{0})"),
    "abs": Function(torch.abs, 1, "absolute({0})", "tl.abs({0})"),
    "relu": Function(torch.relu, 1, "relu({0})", "relu({0})"),
    "square": Function(torch.square, 1, "({0} * {0})", "({0} * {0})"),
    "pow": Function(_pow, 2, "power<{1}>({0})", "power({0}, {1})", flops=4),
    "sqrt": Function(torch.sqrt, 1, "root({0})", "tl.sqrt_rn({0})"),
    "rsqrt": Function(torch.rsqrt, 1, "(all(1.0f) / root({0}))", "(1.0 / tl.sqrt_rn({0}))"),
    "exp": Function(torch.exp, 1, "exponential({0})", "tl.exp({0})", flops=SPECIAL),
    "log": Function(torch.log, 1, "logarithm({0})", "tl.log({0})", flops=SPECIAL),
    "tanh": Function(torch.tanh, 1, "hyperbolic({0})", "hyperbolic({0})", flops=SPECIAL),
    "erf": Function(torch.erf, 1, "error_function({0})", "tl.erf({0})", flops=SPECIAL),
    "sigmoid": Function(torch.sigmoid, 1, "sigmoid({0})", "sigmoid({0})", flops=SPECIAL),
    "silu": Function(F.silu, 1, "silu({0})", "silu({0})", flops=SPECIAL),
    "gelu": Function(F.gelu, 1, "gelu({0})", "gelu({0})", flops=SPECIAL),
    "gelu_tanh": Function(_gelu_tanh, 1, "gelu_tanh({0})", "gelu_tanh({0})", flops=2 * SPECIAL),
    "maximum": Function(torch.maximum, 2, "maximum({0}, {1})", "maximum({0}, {1})"),
    "minimum": Function(torch.minimum, 2, "minimum({0}, {1})", "minimum({0}, {1})"),
    "clamp": Function(
        _clamp,
        3,
        "minimum(maximum({0}, {1}), {2})",
        "minimum(maximum({0}, {1}), {2})",
        flops=2,
    ),
    # then where left > right, else otherwise; NaN is not greater
    "where_gt": Function(
        _where_gt,
        4,
        "({0} > {1} ? {2} : {3})",
        "tl.where({0} > {1}, {2}, {3})",
        choices=(2, 3),
    ),
}
