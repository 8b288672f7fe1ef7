"""Triton kernel of `tokenpass::row_stats_relu`: one program per row, which holds the row."""

from __future__ import annotations

from string import Template
from typing import ClassVar

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.triton.sizes import power_of_two
from tokenpass.codegen.triton.template import AheadOfTime, TritonTemplate
from tokenpass.codegen.triton.texts import REACH, kind_of
from tokenpass.edits import Rejection

MOST = 16384
"""Columns that a program holds in registers: 32 for each of 512 threads."""

SOURCE = Template('''\
"""relu(x - (mean + deviations * std)), with each row's own mean and population deviation."""

import torch
import triton
import triton.language as tl

BLOCK = tl.constexpr($block)


@triton.jit
def read(x, first, columns):
    column = first + tl.arange(0, BLOCK)
    return tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32)


@triton.jit
def squares(value, mean, first, columns):
    apart = tl.where(first + tl.arange(0, BLOCK) < columns, value - mean, 0.0)
    return apart * apart


@triton.jit
def write(out, value, cut, first, columns):
    column = first + tl.arange(0, BLOCK)
    above = value - cut
    result = tl.where(above < 0.0, 0.0, above)  # NaN stays
    tl.store(out + column, result.to(out.dtype.element_ty), mask=column < columns)


@triton.jit
def row_stats_relu(x, out, deviations, columns, x_row):
    row = tl.program_id(0).to(tl.int64)
    x += row * x_row
    out += row * columns
    # The first block stays in registers; longer rows are read again.
    value = read(x, 0, columns)
    total = value
    for first in range(BLOCK, columns, BLOCK):
        total += read(x, first, columns)
    mean = tl.sum(total, axis=0) / columns
    total = squares(value, mean, 0, columns)
    for first in range(BLOCK, columns, BLOCK):
        total += squares(read(x, first, columns), mean, first, columns)
    cut = mean + deviations * tl.sqrt_rn(tl.sum(total, axis=0) / columns)
    write(out, value, cut, 0, columns)
    for first in range(BLOCK, columns, BLOCK):
        write(out, read(x, first, columns), cut, first, columns)


def launch(x, deviations):
    rows, columns = x.shape
    if columns > 1 and x.stride(1) != 1:
        x = x.contiguous()
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if out.numel():
        row_stats_relu[(rows,)](
            x, out, float(deviations), columns, x.stride(0), num_warps=$num_warps
        )
    return out
''')


class TritonRowStatsRelu(TritonTemplate):
    """Mean, deviation and cut of a row in float32; a row of up to 16,384 is read once."""

    name: ClassVar[str] = "triton_row_stats_relu"
    operator: ClassVar[str] = "row_stats_relu"

    def supports(self, problem: Problem) -> Rejection | None:
        x = problem.tensor(0)
        if x is not None and any((size or 0) > REACH - MOST for size in x.shape):
            return Rejection("kernel_shape", self.name, f"{x.shape} exceeds 32 bits")
        return None

    def parameters(self, problem: Problem) -> Parameters:
        x = problem.tensor(0)
        block = power_of_two(None if x is None else x.shape[1], 16, MOST)
        return {
            "stored": kind_of(self.name, x),
            "block": block,
            "num_warps": max(1, min(16, block // 256)),
        }

    def render(self, parameters: Parameters) -> str:
        return SOURCE.substitute(parameters)

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        pointer = f"*{parameters['stored']}"
        return (
            AheadOfTime(
                function="row_stats_relu",
                signature={
                    "x": pointer,
                    "out": pointer,
                    "deviations": "fp32",
                    **dict.fromkeys(("columns", "x_row"), "i32"),
                },
                constants={},
                divisible=("x", "out", "columns", "x_row"),
                options={"num_warps": int(parameters["num_warps"])},
            ),
        )
