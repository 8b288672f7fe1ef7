"""Pointwise text: what is read, what is refused, what it computes, where it is zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpass.ops.pointwise import (
    Call,
    Input,
    Number,
    PointwiseError,
    Y,
    call,
    check_text,
    constant,
    evaluate,
    flops,
    is_zero_where,
    known_value,
    number,
    parse,
)
from tokenpass.ops.pointwise_functions import FUNCTIONS

A0, A1 = Input(0), Input(1)
LEAVES = st.one_of(
    st.builds(Input, st.integers(0, 2)),
    st.just(Y),
    st.floats(width=32, allow_nan=False).map(number),
)


def calls(children):
    def of(name):
        if name == "pow":
            return st.builds(
                lambda x, n: call("pow", x, number(float(n))), children, st.integers(-5, 6)
            )
        count = FUNCTIONS[name].arity
        return st.tuples(*[children] * count).map(lambda given: call(name, *given))

    return st.sampled_from(sorted(FUNCTIONS)).flatmap(of)


expressions = st.recursive(LEAVES, calls, max_leaves=8)


@given(expressions)
def test_text_and_expression_are_each_others_inverse(expression):
    assert parse(str(expression)) == expression
    assert parse(str(expression).replace(", ", " ,  ")) == expression


def test_what_is_read():
    assert parse("mul(square(relu(a0)), a1)") == Call(
        "mul", (Call("square", (Call("relu", (A0,)),)), A1)
    )
    assert parse("add(y,-0.5)") == Call("add", (Y, Number(-0.5)))
    assert parse(" clamp( a12 , -inf , 1e-3 ) ").arguments[1:] == (
        Number(-math.inf),
        Number(float(torch.tensor(1e-3))),  # as it is computed with
    )
    assert parse("0.1") == parse(str(parse("0.1")))
    assert number(0.0) != number(-0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends too early"),
        ("add(a0", r"add needs \(arguments\)"),
        ("add", r"add needs \(arguments\)"),
        ("add()", "is no function, input or number"),
        ("add(a0,)", "is no function, input or number"),
        ("add(a0)", "add takes 2 arguments, got 1"),
        ("add(a0, a1, a2)", "add takes 2 arguments, got 3"),
        ("a0 a1", "'a1' after its end"),
        ("a0)", r"'\)' after its end"),
        ("rellu(a0)", "did you mean 'relu'"),
        ("a100", "'a100' is no function"),
        ("a00", "'a00' is no function"),
        ("x", "'x' is no function"),
        ("nan", "'nan' is no function"),
        ("a0; system", "unexpected ';'"),
        ("__import__", "is no function"),
        ("a0.b", "unexpected '.'"),
        ('mul(a0, "x")', "unexpected '\"'"),
        ("mul(a0,\nrelu(a1))", "unexpected"),
        ("pow(a0, 0.5)", "whole number"),
        ("pow(a0, a1)", "whole number"),
        ("pow(a0, 17.0)", "at most 16"),
        ("pow(a0, inf)", "whole number"),
        ("neg(" * 70 + "a0" + ")" * 70, "over 64 levels deep"),
        ("a0 " * 2000, "over 256 parts"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(PointwiseError, match=message):
        parse(text)


def test_constants_that_are_not_numbers_are_refused():
    with pytest.raises(PointwiseError, match="NaN"):
        number(math.nan)
    with pytest.raises(PointwiseError, match=r"no pointwise function.*mean 'relu'"):
        call("relo", A0)


def test_a_text_reads_what_there_is():
    assert check_text("op", "prologue", "mul(a0, a1)", 2, computed=False)
    assert check_text("op", "epilogue", "add(y, a0)", 1, computed=True)
    with pytest.raises(PointwiseError, match="op: prologue reads a1, but there are 1 inputs"):
        check_text("op", "prologue", "mul(a0, a1)", 1, computed=False)
    with pytest.raises(PointwiseError, match="prologue comes first, there is no y"):
        check_text("op", "prologue", "y", 1, computed=False)


def test_evaluation_is_float32_and_broadcasts():
    rows = torch.randn(2, 3, dtype=torch.bfloat16)
    column = torch.tensor([[2.0], [3.0]])
    found = evaluate(parse("where_gt(a0, 0.0, mul(a0, a1), add(y, 1.0))"), (rows, column), rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.where(rows > 0, rows.float() * column, rows.float() + 1))
    with pytest.raises(PointwiseError, match="nothing has been computed"):
        evaluate(Y, ())


VALUES = torch.tensor([-2.0, -0.5, 0.0, 0.7, 3.0])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("pow(a0, 3.0)", VALUES**3),
        ("clamp(a0, -1.0, 1.0)", VALUES.clamp(-1, 1)),
        ("gelu_tanh(a0)", torch.nn.functional.gelu(VALUES, approximate="tanh")),
        ("gelu(a0)", torch.nn.functional.gelu(VALUES)),
        ("maximum(a0, 0.25)", VALUES.clamp_min(0.25)),
        ("where_gt(abs(a0), 1.0, a0, 0.0)", torch.tensor([-2.0, 0, 0, 0, 3])),
        ("neg(div(sub(a0, 1.0), 4.0))", (1 - VALUES) / 4),
    ],
)
def test_meanings(text, want):
    torch.testing.assert_close(evaluate(parse(text), (VALUES,)), want)


@pytest.mark.parametrize(
    ("text", "zero"),
    [
        ("relu(a0)", True),
        ("square(relu(a0))", True),
        ("pow(a0, 3.0)", True),
        ("pow(a0, 0.0)", False),
        ("mul(silu(a0), a1)", True),
        ("mul(a1, gelu(a0))", True),
        ("gelu_tanh(a0)", True),
        ("div(a0, a1)", True),
        ("div(a1, a0)", False),
        ("add(a0, a1)", False),
        ("add(a0, mul(2.0, a0))", True),
        ("add(a0, 1.0)", False),
        ("sub(add(a0, 1.0), 1.0)", True),
        ("sigmoid(a0)", False),
        ("exp(a0)", False),
        ("tanh(neg(abs(sqrt(a0))))", True),
        ("rsqrt(a0)", False),
        ("clamp(a0, -1.0, 2.0)", True),
        ("clamp(a0, 1.0, 2.0)", False),
        ("maximum(a0, a1)", False),
        ("where_gt(abs(a0), 0.1, a0, 0.0)", True),
        ("where_gt(a1, 0.1, a0, 0.0)", True),
        ("where_gt(a1, 0.1, a0, 1.0)", False),
        ("where_gt(a1, 0.1, a1, a1)", False),
    ],
)
def test_zero_stays_zero(text, zero):
    expression = parse(text)
    assert is_zero_where(expression, (A0,)) == zero
    inputs = (torch.zeros(50), torch.linspace(-3, 3, 50))
    if zero:
        assert (evaluate(expression, inputs) == 0).all()


@given(expressions)
def test_known_values_are_what_is_computed(expression):
    value = known_value(expression, {A0: 0.0})
    if value is not None:
        generator = torch.Generator().manual_seed(0)
        some = [torch.zeros(9), *torch.randn(3, 9, generator=generator)]
        found = evaluate(expression, some[:3], some[3]).expand(9)
        # an operation on infinities may undo what 0 absorbs
        for one in found[found.isfinite()].tolist():
            assert one == value


def test_constants_are_parts_that_read_nothing():
    assert constant(parse("mul(exp(0.0), pow(3.0, 2.0))")) == 9.0
    assert constant(parse("mul(0.0, a0)")) is None  # it may be NaN
    assert constant(Y) is None
    assert math.isnan(constant(parse("log(-1.0)")))


def test_equal_parts_cost_once():
    assert flops(parse("mul(relu(a0), relu(a0))")) == 2
    assert flops(parse("a0")) == 0
