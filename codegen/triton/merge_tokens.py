"""Triton kernel of `tokenpass::merge_tokens`: one program per merged token and channel block."""

from __future__ import annotations

from string import Template
from typing import ClassVar

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.triton.sizes import (
    MAX_GRID_Y,
    MAX_SAMPLE_ELEMENTS,
    TYPES,
    power_of_two,
    unsupported,
)
from tokenpass.codegen.triton.template import AheadOfTime, TritonTemplate
from tokenpass.edits import Rejection
from tokenpass.errors import InternalError

SOURCE = Template('''\
"""Weighted sums over segments: out[b, s] = sum of shares[b, i] x[b, i] where segment[b, i] = s.

A program looks its segment's tokens up in rising order: no atomic addition, the same sum always.
"""

import torch
import triton
import triton.language as tl

BLOCK_TOKENS = tl.constexpr($block_tokens)
BLOCK_WIDTH = tl.constexpr($block_width)


@triton.jit
def merge_tokens(
    x,
    segment,
    shares,
    out,
    tokens,
    count,
    width,
    x_stride_batch,
    x_stride_token,
):
    row = tl.program_id(0).to(tl.int64)
    sample, place = row // count, row % count
    channel = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    inside = channel < width
    x += sample * x_stride_batch
    segment += sample * tokens
    shares += sample * tokens
    total = tl.zeros([BLOCK_WIDTH], tl.float32)
    for first in range(0, tokens, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        joined = tl.load(segment + token, mask=token < tokens, other=-1) == place
        at = tl.min(tl.where(joined, token, tokens))
        while at < tokens:
            share = tl.load(shares + at).to(tl.float32)
            value = tl.load(x + at * x_stride_token + channel, mask=inside, other=0.0)
            total += share * value.to(tl.float32)
            at = tl.min(tl.where(joined & (token > at), token, tokens))
    tl.store(out + row * width + channel, total.to(out.dtype.element_ty), mask=inside)


def launch(x, segment, shares, count):
    batch, tokens, width = x.shape
    if x.stride(2) != 1 or tokens * x.stride(1) > $max_sample_elements:
        x = x.contiguous()
    out = torch.empty((batch, count, width), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    merge_tokens[(batch * count, triton.cdiv(width, $block_width))](
        x,
        segment.contiguous(),
        shares.contiguous(),
        out,
        tokens,
        count,
        width,
        x.stride(0),
        x.stride(1),
        num_warps=$num_warps,
    )
    return out
''')


class TritonMergeTokens(TritonTemplate):
    """Every program reads the sample's segments once (from cache), and its own rows once."""

    name: ClassVar[str] = "triton_merge_tokens"
    operator: ClassVar[str] = "merge_tokens"

    def supports(self, problem: Problem) -> Rejection | None:
        x, shares = problem.tensor(0), problem.tensor(2)
        reason = unsupported(self.name, x) or unsupported(self.name, shares)
        if reason is None and x is not None and (x.shape[2] or 0) > MAX_GRID_Y * 1024:
            return Rejection("kernel_shape", self.name, f"{x.shape[2]} channels are too many")
        return reason

    def parameters(self, problem: Problem) -> Parameters:
        x, shares = problem.tensor(0), problem.tensor(2)
        if x is None or shares is None:
            raise InternalError(f"{self.name}: a problem without values was not rejected")
        return {
            "x_type": TYPES[x.dtype],
            "shares_type": TYPES[shares.dtype],
            "block_tokens": power_of_two(x.shape[1], 32, 1024),
            "block_width": power_of_two(x.shape[2], 16, 1024),
            "num_warps": 4,
        }

    def render(self, parameters: Parameters) -> str:
        return SOURCE.substitute(parameters, max_sample_elements=MAX_SAMPLE_ELEMENTS)

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        pointer, strides = f"*{parameters['x_type']}", ("x_stride_batch", "x_stride_token")
        return (
            AheadOfTime(
                function="merge_tokens",
                signature={
                    "x": pointer,
                    "segment": "*i64",
                    "shares": f"*{parameters['shares_type']}",
                    "out": pointer,
                    **dict.fromkeys(("tokens", "count", "width", *strides), "i32"),
                },
                constants={},
                divisible=("x", "segment", "shares", "out", "width", *strides),
                options={"num_warps": int(parameters["num_warps"])},
            ),
        )
