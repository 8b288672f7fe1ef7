"""The conversions that every kernel begins with, over all 16-bit numbers and beyond."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tokenpass.codegen.cpp.build import load
from tokenpass.codegen.cpp.isa import ISAS, available
from tokenpass.codegen.cpp.template import STORED
from tokenpass.codegen.cpp.vectors import prelude

FUNCTIONS = """
#define EXPORT extern "C" __attribute__((visibility("default"))) void
EXPORT widened(const $T *from, float *to, int64_t count) {
    int64_t at = 0;
    for (; at + W <= count; at += W) store(to + at, load(from + at));
    if (at < count) store_part(to + at, load_part(from + at, count - at), count - at);
}
EXPORT narrowed(const float *from, $T *to, int64_t count) {
    int64_t at = 0;
    for (; at + W <= count; at += W) store(to + at, load(from + at));
    if (at < count) store_part(to + at, load_part(from + at, count - at), count - at);
}
EXPORT summed(const float *from, float *to) {
    v4f each = sums(load(from), load(from + W), load(from + 2 * W), load(from + 3 * W));
    for (int lane = 0; lane < 4; lane++) to[lane] = each[lane];
}
"""


@pytest.fixture
def run():
    def call(isa, dtype, name, *arguments):
        text = prelude(isa) + FUNCTIONS.replace("$T", STORED[dtype])
        function = getattr(load("vectors", text, isa), name)
        function.restype = None
        function(*(ctypes.c_void_p(x.data_ptr()) for x in arguments[:2]), *arguments[2:])
        return arguments[1]

    return call


def every_isa():
    return pytest.mark.parametrize("isa", available(("avx512", "avx2", "scalar")))


def bits(x):
    return x.view(torch.int32)


@every_isa()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_widened_exactly(isa, dtype, run):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)[:-3].clone()
    found = run(isa, dtype, "widened", every, torch.empty(len(every)), len(every))
    want = every.float()
    assert torch.equal(found.isnan(), want.isnan())
    real = ~want.isnan()
    assert torch.equal(bits(found)[real], bits(want)[real])  # zeros have signs


@every_isa()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_floats_are_rounded_as_torch_rounds_them(isa, dtype, run):
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (200_001,), generator=generator).to(torch.int32)
    near = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    halfway = (near[:-1].double() + near[1:].double()).div(2).float()  # ties
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 65519.9, 65520.0, 1e-45])
    x = torch.cat([anything.view(torch.float32), near, halfway, special])
    found = run(isa, dtype, "narrowed", x, torch.empty(len(x), dtype=dtype), len(x))
    want = x.to(dtype)
    assert torch.equal(found.isnan(), want.isnan())
    real = ~want.isnan()
    assert torch.equal(found.view(torch.int16)[real], want.view(torch.int16)[real])


@every_isa()
@pytest.mark.parametrize("count", [0, 1, 3, 15, 16, 17, 40])
def test_tails_touch_nothing_else(isa, count, run):
    x = torch.arange(1.0, 60.0)
    for dtype in STORED:
        to = torch.full((60,), -7.0)
        found = run(isa, dtype, "widened", x.to(dtype), to, count)
        assert found[:count].tolist() == x[:count].tolist() and (found[count:] == -7).all()


@every_isa()
def test_sums_of_lanes(isa, run):
    lanes = ISAS[isa].lanes
    x = torch.arange(4.0 * lanes).reshape(4, lanes) ** 2
    found = run(isa, torch.float32, "summed", x, torch.empty(4))
    assert found.tolist() == x.sum(1).tolist()
