"""Triton kernel of `tokenpass::farthest_point`: one program per sample makes all its choices."""

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
from tokenpass.ops.farthest_point import CHOSEN, PADDING

SOURCE = Template('''\
"""Greedy max-min selection: the next choice is the token farthest from all choices before it.

nearest[i] = min over choices j of |x[i] - x[j]|^2,  next = argmax nearest, the lowest where equal
"""

import torch
import triton
import triton.language as tl

BLOCK_TOKENS = tl.constexpr($block_tokens)
BLOCK_WIDTH = tl.constexpr($block_width)
CHOSEN = tl.constexpr($chosen)
BEYOND = tl.constexpr($chosen - 1.0)


@triton.jit
def farthest_point(
    x,
    nearest,
    index,
    start_at,
    tokens,
    count,
    width,
    x_stride_batch,
    x_stride_token,
    start_stride_batch,
):
    sample = tl.program_id(0).to(tl.int64)
    x += sample * x_stride_batch
    nearest += sample * tokens
    index += sample * count
    chosen = tl.load(start_at + sample * start_stride_batch)
    chosen = tl.minimum(tl.maximum(chosen, 0), tokens - 1).to(tl.int32)
    for step in range(0, count):
        tl.store(index + step, chosen.to(tl.int64))
        best = tl.full([], BEYOND, tl.float32)
        best_at = tl.full([], 0, tl.int32)
        for first in range(0, tokens, BLOCK_TOKENS):
            token = first + tl.arange(0, BLOCK_TOKENS)
            apart = tl.zeros([BLOCK_TOKENS], tl.float32)
            for start in range(0, width, BLOCK_WIDTH):
                channel = start + tl.arange(0, BLOCK_WIDTH)
                inside = channel < width
                at = tl.load(x + chosen * x_stride_token + channel, mask=inside, other=0.0)
                rows = tl.load(
                    x + token[:, None] * x_stride_token + channel[None, :],
                    mask=(token < tokens)[:, None] & inside[None, :],
                    other=0.0,
                )
                difference = rows.to(tl.float32) - at.to(tl.float32)[None, :]
                apart += tl.sum(difference * difference, axis=1)
            before = tl.load(nearest + token, mask=token < tokens, other=BEYOND)
            now = tl.where(apart < before, apart, before)  # a distance that is NaN does not count
            now = tl.where(token == chosen, CHOSEN, now)
            tl.store(nearest + token, now, mask=token < tokens)
            top, place = tl.max(
                now, axis=0, return_indices=True, return_indices_tie_break_left=True
            )
            better = top > best  # strictly: equal distances stay with the earlier block
            best = tl.where(better, top, best)
            best_at = tl.where(better, first + place, best_at)
        chosen = best_at
        tl.debug_barrier()  # another thread may read what this one stored


def launch(x, count, first, sizes=None):
    batch, tokens, width = x.shape
    index = torch.empty((batch, count), dtype=torch.int64, device=x.device)
    if index.numel() == 0:
        return index
    if x.stride(2) != 1 or tokens * x.stride(1) > $max_sample_elements:
        x = x.contiguous()
    nearest = torch.full((batch, tokens), torch.inf, dtype=torch.float32, device=x.device)
    if sizes is not None:
        nearest.masked_fill_(sizes == 0, $padding)
    farthest_point[(batch,)](
        x,
        nearest,
        index,
        first,
        tokens,
        count,
        width,
        x.stride(0),
        x.stride(1),
        0 if first.shape[0] == 1 else first.stride(0),
        num_warps=$num_warps,
    )
    return index
''')

BLOCK = 2048
"""Elements that a program holds at once; twice as many spilled on sm_90."""


class TritonFarthestPoint(TritonTemplate):
    """Each choice waits for the one before it, so a sample's tokens are read `count` times.

    They stay in the second-level cache. Distances of all pairs beforehand would make a choice
    cheaper, and hold `tokens` x `tokens` numbers.
    """

    name: ClassVar[str] = "triton_farthest_point"
    operator: ClassVar[str] = "farthest_point"

    def supports(self, problem: Problem) -> Rejection | None:
        return unsupported(self.name, problem.tensor(0))

    def parameters(self, problem: Problem) -> Parameters:
        x = problem.tensor(0)
        if x is None:
            raise InternalError(f"{self.name}: a problem without values was not rejected")
        block_width = power_of_two(x.shape[2], 16, 128)
        return {
            "x_type": TYPES[x.dtype],
            "block_tokens": min(power_of_two(x.shape[1], 16, 256), BLOCK // block_width),
            "block_width": block_width,
            "num_warps": 8,
        }

    def render(self, parameters: Parameters) -> str:
        return SOURCE.substitute(
            parameters,
            max_sample_elements=MAX_SAMPLE_ELEMENTS,
            chosen=CHOSEN,
            padding=PADDING,
        )

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        strides = ("x_stride_batch", "x_stride_token")
        numbers = ("tokens", "count", "width", *strides, "start_stride_batch")
        return (
            AheadOfTime(
                function="farthest_point",
                signature={
                    "x": f"*{parameters['x_type']}",
                    "nearest": "*fp32",
                    "index": "*i64",
                    "start_at": "*i64",
                    **dict.fromkeys(numbers, "i32"),
                },
                constants={},
                divisible=("x", "nearest", "index", "width", *strides),
                options={"num_warps": int(parameters["num_warps"])},
            ),
        )
