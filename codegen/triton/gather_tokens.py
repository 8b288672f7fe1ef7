"""Triton kernel of `tokenpass::gather_tokens`: rows copied by index, a block of rows a program."""

from __future__ import annotations

from string import Template
from typing import ClassVar

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.triton.sizes import (
    MAX_SAMPLE_ELEMENTS,
    TYPES,
    power_of_two,
    unsupported,
)
from tokenpass.codegen.triton.template import AheadOfTime, TritonTemplate
from tokenpass.edits import Rejection
from tokenpass.errors import InternalError

SOURCE = Template('''\
"""Some tokens of every sample: out[b, j] = x[b, index[b, j]]."""

import torch
import triton
import triton.language as tl

BLOCK_ROWS = tl.constexpr($block_rows)
BLOCK_WIDTH = tl.constexpr($block_width)


@triton.jit
def gather_tokens(
    x,
    index,
    out,
    rows,
    tokens,
    count,
    width,
    x_stride_batch,
    x_stride_token,
    index_stride_batch,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    sample, place = row // count, row % count
    token = tl.load(index + sample * index_stride_batch + place, mask=row < rows, other=-1)
    # An index out of range reads nothing: its row is zero.
    known = (token >= 0) & (token < tokens)
    source = x + sample * x_stride_batch + token * x_stride_token
    inside = channel < width
    value = tl.load(
        source[:, None] + channel[None, :], mask=known[:, None] & inside[None, :], other=0.0
    )
    goal = out + row * width
    tl.store(
        goal[:, None] + channel[None, :], value, mask=(row < rows)[:, None] & inside[None, :]
    )


def launch(x, index):
    batch, tokens, width = x.shape
    count = index.shape[1]
    if x.stride(2) != 1 or tokens * x.stride(1) > $max_sample_elements:
        x = x.contiguous()
    if index.stride(1) != 1:
        index = index.contiguous()
    out = torch.empty((batch, count, width), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    rows = batch * count
    gather_tokens[(triton.cdiv(rows, $block_rows), triton.cdiv(width, $block_width))](
        x,
        index,
        out,
        rows,
        tokens,
        count,
        width,
        x.stride(0),
        x.stride(1),
        0 if index.shape[0] == 1 else index.stride(0),
        num_warps=$num_warps,
    )
    return out
''')

BLOCK = 2048
"""Elements that one program copies."""


class TritonGatherTokens(TritonTemplate):
    """Bound by memory: neighbouring threads read neighbouring channels of a row."""

    name: ClassVar[str] = "triton_gather_tokens"
    operator: ClassVar[str] = "gather_tokens"

    def supports(self, problem: Problem) -> Rejection | None:
        return unsupported(self.name, problem.tensor(0))

    def parameters(self, problem: Problem) -> Parameters:
        x = problem.tensor(0)
        if x is None:
            raise InternalError(f"{self.name}: a problem without values was not rejected")
        block_width = power_of_two(x.shape[2], 16, 1024)
        return {
            "x_type": TYPES[x.dtype],
            "block_rows": BLOCK // block_width,
            "block_width": block_width,
            "num_warps": 4,
        }

    def render(self, parameters: Parameters) -> str:
        return SOURCE.substitute(parameters, max_sample_elements=MAX_SAMPLE_ELEMENTS)

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        pointer = f"*{parameters['x_type']}"
        numbers = ("rows", "tokens", "count", "width")
        strides = ("x_stride_batch", "x_stride_token")
        return (
            AheadOfTime(
                function="gather_tokens",
                signature={
                    "x": pointer,
                    "index": "*i64",
                    "out": pointer,
                    **dict.fromkeys((*numbers, *strides, "index_stride_batch"), "i32"),
                },
                constants={},
                divisible=("x", "index", "out", "width", *strides),
                options={"num_warps": int(parameters["num_warps"])},
            ),
        )
