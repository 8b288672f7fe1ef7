"""Triton kernel of `tokenpass::attention_row`: one program per sample and head."""

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
"""One query's attention: out[b, h] = softmax over keys of query[b, h] . keys[b, h] scale + bias.

Keys pass by once; scores wait in `out` until the largest and the sum of weights are known.
"""

import torch
import triton
import triton.language as tl

BLOCK_KEYS = tl.constexpr($block_keys)
BLOCK_WIDTH = tl.constexpr($block_width)
HAS_BIAS = tl.constexpr($has_bias)
MINUS_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def attention_row(
    query,
    keys,
    bias,
    out,
    scale,
    tokens,
    width,
    heads,
    group,
    query_stride_batch,
    query_stride_head,
    keys_stride_batch,
    keys_stride_head,
    keys_stride_token,
    bias_stride_batch,
    bias_stride_head,
):
    row = tl.program_id(0).to(tl.int64)
    sample, head = row // heads, row % heads
    query += sample * query_stride_batch + head * query_stride_head
    keys += sample * keys_stride_batch + (head // group) * keys_stride_head
    out += row * tokens
    if HAS_BIAS:
        bias += sample * bias_stride_batch + head * bias_stride_head
    channels = tl.arange(0, BLOCK_WIDTH)
    top = tl.full([], MINUS_INFINITY, tl.float32)
    safe = tl.full([], 0.0, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for first in range(0, tokens, BLOCK_KEYS):
        key = first + tl.arange(0, BLOCK_KEYS)
        score = tl.zeros([BLOCK_KEYS], tl.float32)
        for start in range(0, width, BLOCK_WIDTH):
            channel = start + channels
            asked = tl.load(query + channel, mask=channel < width, other=0.0).to(tl.float32)
            there = tl.load(
                keys + key[:, None] * keys_stride_token + channel[None, :],
                mask=(key < tokens)[:, None] & (channel < width)[None, :],
                other=0.0,
            ).to(tl.float32)
            score += tl.sum(asked[None, :] * there, axis=1)
        score = score * scale
        if HAS_BIAS:
            score += tl.load(bias + key, mask=key < tokens, other=0.0).to(tl.float32)
        score = tl.where(key < tokens, score, MINUS_INFINITY)
        tl.store(out + key, score, mask=key < tokens)
        higher = tl.maximum(top, tl.max(score))
        safe = tl.where(higher == MINUS_INFINITY, 0.0, higher)
        # NaN passes maxima by and is caught in the sum, which makes the whole row NaN.
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(score - safe))
        top = higher
    tl.debug_barrier()  # another thread may read what this one stored
    total = tl.where(total == 0.0, 1.0, total)  # every key is hidden: the row is zero
    for first in range(0, tokens, BLOCK_KEYS):
        key = first + tl.arange(0, BLOCK_KEYS)
        score = tl.load(out + key, mask=key < tokens, other=0.0)
        tl.store(out + key, tl.exp(score - safe) / total, mask=key < tokens)


def launch(query, keys, bias, scale):
    batch, heads, _, width = query.shape
    kv_heads, tokens = keys.shape[1:3]
    out = torch.empty((batch, heads, tokens), dtype=torch.float32, device=query.device)
    if out.numel() == 0:
        return out
    if query.stride(3) != 1:
        query = query.contiguous()
    reach = sum((size - 1) * step for size, step in zip(keys.shape[1:], keys.stride()[1:]))
    if keys.stride(3) != 1 or reach > $max_sample_elements:
        keys = keys.contiguous()
    if bias is not None:
        bias = bias.expand(batch, heads, tokens)
        if bias.stride(2) != 1:
            bias = bias.contiguous()
    attention_row[(batch * heads,)](
        query,
        keys,
        bias,
        out,
        scale,
        tokens,
        width,
        heads,
        heads // kv_heads,
        query.stride(0),
        query.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        0 if bias is None else bias.stride(0),
        0 if bias is None else bias.stride(1),
        num_warps=$num_warps,
    )
    return out
''')

BLOCK = 4096
"""Key elements that a program holds at once."""


class TritonAttentionRow(TritonTemplate):
    """Bound by reading the keys; heads that share them find them in cache."""

    name: ClassVar[str] = "triton_attention_row"
    operator: ClassVar[str] = "attention_row"

    def supports(self, problem: Problem) -> Rejection | None:
        bias = problem.tensor(2)
        if bias is not None and bias.dtype not in TYPES:
            return Rejection("kernel_dtype", self.name, f"bias is {bias.dtype}", "cast to float32")
        return unsupported(self.name, problem.tensor(0)) or unsupported(
            self.name, problem.tensor(1)
        )

    def parameters(self, problem: Problem) -> Parameters:
        keys, bias = problem.tensor(1), problem.tensor(2)
        if keys is None:
            raise InternalError(f"{self.name}: a problem without keys was not rejected")
        block_width = power_of_two(keys.shape[3], 16, 128)
        return {
            "keys_type": TYPES[keys.dtype],
            "bias_type": "none" if bias is None else TYPES[bias.dtype],
            "block_keys": min(power_of_two(keys.shape[2], 16, 256), BLOCK // block_width),
            "block_width": block_width,
            "has_bias": bias is not None,
            "num_warps": 4,
        }

    def render(self, parameters: Parameters) -> str:
        return SOURCE.substitute(parameters, max_sample_elements=MAX_SAMPLE_ELEMENTS)

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        given, pointer = bool(parameters["has_bias"]), f"*{parameters['keys_type']}"
        strides = (
            "query_stride_batch",
            "query_stride_head",
            "keys_stride_batch",
            "keys_stride_head",
            "keys_stride_token",
        )
        of_bias = ("bias_stride_batch", "bias_stride_head")
        return (
            AheadOfTime(
                function="attention_row",
                signature={
                    "query": pointer,
                    "keys": pointer,
                    "bias": f"*{parameters['bias_type']}" if given else "constexpr",
                    "out": "*fp32",
                    "scale": "fp32",
                    **dict.fromkeys(("tokens", "width", "heads", "group"), "i32"),
                    **dict.fromkeys((*strides, *of_bias), "i32"),
                },
                constants={} if given else {"bias": None},
                divisible=("query", "keys", "out", "width", *strides),
                options={"num_warps": int(parameters["num_warps"])},
            ),
        )
