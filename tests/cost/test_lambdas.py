"""Compiled expressions: torch's integer functions, and forms shared by groups alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
from torch.utils._sympy.functions import CeilToInt, FloorDiv, IntTrueDiv, Max, Min, Mod, PythonMod

from tokenpass.cost.fusion import FusionGroup
from tokenpass.cost.lambdas import size_function

A, B = sympy.symbols("a b", integer=True, positive=True)


def group(flops: sympy.Expr, moved: sympy.Expr | None = None) -> FusionGroup:
    return FusionGroup(
        names=("x",),
        work="pointwise",
        dtype="float32",
        flops=flops,
        dims=(flops,),
        elements=(("pointwise", flops),),
        bytes_read=sympy.Integer(8) if moved is None else moved,
        bytes_written=sympy.Integer(4),
    )


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (16 * FloorDiv(3 * A, 64), 16 * (3 * 197 // 64)),
        (Mod(A, 8), 197 % 8),
        (PythonMod(A, 10), 7),
        (Max(A, 200), 200),
        (Min(A, 200) * 2, 394),
        (sympy.Max(A, 100), 197),
        (sympy.Min(A, 100), 100),
        (CeilToInt(IntTrueDiv(A, 16)), 13),
        (A * (A + 1) / 2, 197 * 198 / 2),
    ],
)
def test_integer_functions(expression, expected):
    function, symbols = size_function(group(expression), {})
    assert symbols == (A,)
    sizes = function((197,))
    assert sizes.flops == expected
    assert sizes.dims == (float(expected),)
    assert sizes.elements == (("pointwise", float(expected)),)
    assert sizes.moved_bytes == 12


def test_groups_that_differ_in_names_share_a_form():
    forms = {}
    first, left = size_function(group(2 * A, A), forms)
    second, right = size_function(group(2 * B, B), forms)
    third, _ = size_function(group(3 * B, B), forms)
    assert first is second and first is not third
    assert (left, right) == ((A,), (B,))
    assert len(forms) == 2


def test_bytes_alone_may_depend_on_a_level():
    function, symbols = size_function(group(sympy.Integer(5), 4 * A * B), {})
    assert symbols == (A, B)
    assert function((3, 7)).moved_bytes == 4 * 3 * 7 + 4


def test_calls_may_depend_on_a_size_and_tell_forms_apart():
    forms = {}
    steps, symbols = size_function(replace(group(sympy.Integer(6)), calls=2 + 3 * A), forms)
    once, none = size_function(group(sympy.Integer(6)), forms)
    assert symbols == (A,) and steps((10,)).calls == 32
    assert none == () and once(()).calls == 1
    assert len(forms) == 2
