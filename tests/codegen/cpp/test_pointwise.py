"""C++ mathematics against float64, and rendered expressions against their evaluation in torch."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.codegen.expressions import COMBINED, single
from tokenpass.codegen.cpp.build import load
from tokenpass.codegen.cpp.isa import available
from tokenpass.codegen.cpp.pointwise import mathematics, statements
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.ops.pointwise import Number, evaluate, parse
from tokenpass.ops.pointwise_functions import FUNCTIONS

every_isa = pytest.mark.parametrize("isa", available(("avx512", "avx2", "scalar")))

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    torch.inf,
    -torch.inf,
    torch.nan,
    1e-45,
    -1e-45,
    1e-38,
    3e38,
    -3e38,
]
ULPS = {"exp": 1.1, "log": 1, "tanh": 2, "erf": 2}


def source(isa, expressions):
    """One function for each expression, over inputs of equal length [count, 3] padded to lanes."""
    lines = [prelude(isa), mathematics()]
    for at, expression in enumerate(expressions):
        lines.append(
            f'extern "C" __attribute__((visibility("default"))) void f{at}(const float *a0,\n'
            "    const float *a1, const float *y, float *to, int64_t count) {\n"
            "    for (int64_t at = 0; at < count; at += W) {"
        )
        body = statements(expression, lambda leaf: f"load({leaf} + at)")
        lines += [f"        {line}" for line in body]
        lines.append("        store(to + at, result);\n    }\n}")
    return "\n".join(lines)


def run(library, at, *inputs):
    count = len(inputs[0])
    padded = [torch.cat([x, x.new_zeros(-count % 16)]) for x in inputs]
    to = torch.empty_like(padded[0])
    given = [ctypes.c_void_p(x.data_ptr()) for x in (*padded, to)]
    getattr(library, f"f{at}")(*given, ctypes.c_int64(len(to)))
    return to[:count]


@pytest.fixture(scope="module")
def numbers():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (400_000,), generator=generator).to(torch.int32)
    spread = torch.cat([torch.linspace(-r, r, 200_001) for r in (0.01, 1.0, 6.0, 110.0)])
    return torch.cat([bits.view(torch.float32), spread, torch.tensor(SPECIAL)])


def ulps(found, want):
    """How far `found` (float32) lies from `want` (float64), in float32's spacing at `want`."""
    magnitude = want.abs().clamp(2.0**-126, 3.4e38)
    spacing = 2.0 ** (torch.floor(torch.log2(magnitude)) - 23)
    return (found.double() - want).abs() / spacing


@every_isa
def test_mathematics_is_within_two_units_in_the_last_place(isa, numbers):
    names = list(ULPS)
    library = load("mathematics", source(isa, [parse(f"{name}(a0)") for name in names]), isa)
    for at, name in enumerate(names):
        found = run(library, at, numbers, numbers, numbers)
        want = FUNCTIONS[name].torch(numbers.double())
        rounded = want.float()
        odd = ~rounded.isfinite()
        assert torch.equal(found[odd].isnan(), rounded[odd].isnan()), name
        there = odd & ~rounded.isnan()
        assert torch.equal(found[there], rounded[there]), name
        worst = ulps(found[~odd], want[~odd])
        worst = torch.where(found[~odd].isinf() & (want[~odd].abs() > 3.4028e38), 0.0, worst)
        place = int(worst.argmax())
        assert worst[place] <= ULPS[name], (name, float(numbers[~odd][place]), float(worst[place]))


@every_isa
def test_every_function_is_torchs_on_special_values_too(isa):
    """Computed in float64: torch's own float32 gelu is NaN at infinity where vectors are used."""
    expressions = [one for name in FUNCTIONS for one in single(name)]
    library = load("mathematics", source(isa, expressions), isa)
    special = torch.tensor(SPECIAL)
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(3, 3000, generator=generator) * 3
    a0, a1 = (x.flatten() for x in torch.meshgrid(special, special, indexing="ij"))
    inputs = [torch.cat([x, n]) for x, n in zip((a0, a1, a1.flip(0)), normal, strict=True)]
    for at, expression in enumerate(expressions):
        found = run(library, at, *inputs)
        given = [*inputs, inputs[0]]
        doubles = [given[at] for at in range(len(expression.arguments))]
        want = in_double(expression, doubles).float()
        torch.testing.assert_close(
            found,
            want,
            rtol=2e-6,
            atol=2e-7,
            equal_nan=True,
            msg=lambda m, e=expression: f"{e} {m}",
        )


def in_double(expression, inputs):
    given = [
        torch.tensor(leaf.value) if isinstance(leaf, Number) else x.double()
        for leaf, x in zip(expression.arguments, inputs, strict=True)
    ]
    return FUNCTIONS[expression.function].torch(*given)


@every_isa
def test_combinations_agree_with_torch(isa):
    expressions = [parse(text) for text in COMBINED]
    library = load("combined", source(isa, expressions), isa)
    inputs = list(torch.randn(3, 5000, generator=torch.Generator().manual_seed(2)))
    for at, expression in enumerate(expressions):
        want = evaluate(expression, inputs[:2], inputs[2]).expand(5000)
        torch.testing.assert_close(run(library, at, *inputs), want, rtol=2e-6, atol=2e-7)


def test_equal_parts_are_computed_once():
    lines = statements(parse("mul(add(a0, a1), add(a0, a1))"), str)
    assert lines == (
        "vf t0 = a0;",
        "vf t1 = a1;",
        "vf t2 = (t0 + t1);",
        "vf t3 = (t2 * t2);",
        "vf result = t3;",
    )
