"""Triton kernels of `tokenpass::attention_column_sums`: log sums of rows, then sums of columns."""

from __future__ import annotations

from string import Template
from typing import ClassVar

import torch

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

DOT_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

SOURCE = Template('''\
"""How much attention every key receives, in two passes that compute the scores anew.

log_sum[q] = log sum_k exp(score[q, k]),  out[k] = sum_q exp(score[q, k] - log_sum[q])
"""

import torch
import triton
import triton.language as tl

BLOCK_QUERIES = tl.constexpr($block_queries)
BLOCK_KEYS = tl.constexpr($block_keys)
BLOCK_WIDTH = tl.constexpr($block_width)
HAS_BIAS = tl.constexpr($has_bias)
CAUSAL = tl.constexpr($causal)
MINUS_INFINITY = tl.constexpr(float("-inf"))
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def score_tile(
    query,
    keys,
    bias,
    asking,
    key,
    scale,
    queries,
    tokens,
    width,
    query_stride_token,
    keys_stride_token,
    bias_stride_query,
):
    tile = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        channel = start + tl.arange(0, BLOCK_WIDTH)
        inside = channel < width
        left = tl.load(
            query + asking[:, None] * query_stride_token + channel[None, :],
            mask=(asking < queries)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.$dot_dtype)
        right = tl.load(
            keys + key[None, :] * keys_stride_token + channel[:, None],
            mask=(key < tokens)[None, :] & inside[:, None],
            other=0.0,
        ).to(tl.$dot_dtype)
        tile = tl.dot(left, right, tile, input_precision="ieee", out_dtype=tl.float32)
    tile = tile * scale
    if HAS_BIAS:
        more = tl.load(
            bias + asking[:, None] * bias_stride_query + key[None, :],
            mask=(asking < queries)[:, None] & (key < tokens)[None, :],
            other=0.0,
        )
        tile += more.to(tl.float32)
    seen = (key < tokens)[None, :]
    if CAUSAL:
        seen = seen & (key[None, :] <= asking[:, None])
    return tl.where(seen, tile, MINUS_INFINITY)


@triton.jit
def row_log_sums(
    query,
    keys,
    bias,
    log_sums,
    scale,
    queries,
    tokens,
    width,
    heads,
    group,
    query_stride_batch,
    query_stride_head,
    query_stride_token,
    keys_stride_batch,
    keys_stride_head,
    keys_stride_token,
    bias_stride_batch,
    bias_stride_head,
    bias_stride_query,
):
    row = tl.program_id(1).to(tl.int64)
    sample, head = row // heads, row % heads
    query += sample * query_stride_batch + head * query_stride_head
    keys += sample * keys_stride_batch + (head // group) * keys_stride_head
    if HAS_BIAS:
        bias += sample * bias_stride_batch + head * bias_stride_head
    first = tl.program_id(0) * BLOCK_QUERIES
    asking = first + tl.arange(0, BLOCK_QUERIES)
    top = tl.full([BLOCK_QUERIES], MINUS_INFINITY, tl.float32)
    safe = tl.zeros([BLOCK_QUERIES], tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    end = tokens
    if CAUSAL:
        end = tl.minimum(tokens, first + BLOCK_QUERIES)
    for start in range(0, end, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        tile = score_tile(
            query,
            keys,
            bias,
            asking,
            key,
            scale,
            queries,
            tokens,
            width,
            query_stride_token,
            keys_stride_token,
            bias_stride_query,
        )
        higher = tl.maximum(top, tl.max(tile, axis=1))
        safe = tl.where(higher == MINUS_INFINITY, 0.0, higher)
        # NaN passes maxima by and is caught in the sum.
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(tile - safe[:, None]), axis=1)
        top = higher
    # A query that sees nothing gets an infinite sum: it then adds nothing to any key.
    found = tl.where(total == 0.0, INFINITY, safe + tl.log(total))
    tl.store(log_sums + row * queries + asking, found, mask=asking < queries)


@triton.jit
def column_sums(
    query,
    keys,
    bias,
    log_sums,
    out,
    scale,
    queries,
    tokens,
    width,
    heads,
    group,
    query_stride_batch,
    query_stride_head,
    query_stride_token,
    keys_stride_batch,
    keys_stride_head,
    keys_stride_token,
    bias_stride_batch,
    bias_stride_head,
    bias_stride_query,
):
    row = tl.program_id(1).to(tl.int64)
    sample, head = row // heads, row % heads
    query += sample * query_stride_batch + head * query_stride_head
    keys += sample * keys_stride_batch + (head // group) * keys_stride_head
    if HAS_BIAS:
        bias += sample * bias_stride_batch + head * bias_stride_head
    log_sums += row * queries
    first = tl.program_id(0) * BLOCK_KEYS
    key = first + tl.arange(0, BLOCK_KEYS)
    total = tl.zeros([BLOCK_KEYS], tl.float32)
    begin = 0
    if CAUSAL:
        begin = first // BLOCK_QUERIES * BLOCK_QUERIES
    for start in range(begin, queries, BLOCK_QUERIES):
        asking = start + tl.arange(0, BLOCK_QUERIES)
        tile = score_tile(
            query,
            keys,
            bias,
            asking,
            key,
            scale,
            queries,
            tokens,
            width,
            query_stride_token,
            keys_stride_token,
            bias_stride_query,
        )
        log_sum = tl.load(log_sums + asking, mask=asking < queries, other=INFINITY)
        total += tl.sum(tl.exp(tile - log_sum[:, None]), axis=0)
    tl.store(out + row * tokens + key, total, mask=key < tokens)


def rows_in_order(x):
    reach = sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:]))
    return x.contiguous() if x.stride(3) != 1 or reach > $max_sample_elements else x


def launch(query, keys, bias, causal, scale):
    batch, heads, queries, width = query.shape
    kv_heads, tokens = keys.shape[1:3]
    out = torch.zeros((batch, heads, tokens), dtype=torch.float32, device=query.device)
    if out.numel() * queries == 0:
        return out
    query, keys = rows_in_order(query), rows_in_order(keys)
    of_bias = (0, 0, 0)
    if bias is not None:
        bias = bias if bias.stride(3) == 1 else bias.contiguous()
        bias = bias.expand(batch, heads, queries, tokens)
        of_bias = bias.stride()[:3]
    log_sums = torch.empty((batch, heads, queries), dtype=torch.float32, device=query.device)
    shared = (
        scale,
        queries,
        tokens,
        width,
        heads,
        heads // kv_heads,
        *query.stride()[:3],
        *keys.stride()[:3],
        *of_bias,
    )
    options = {"num_warps": $num_warps, "num_stages": $num_stages}
    row_log_sums[(triton.cdiv(queries, $block_queries), batch * heads)](
        query, keys, bias, log_sums, *shared, **options
    )
    column_sums[(triton.cdiv(tokens, $block_keys), batch * heads)](
        query, keys, bias, log_sums, out, *shared, **options
    )
    return out
''')


class TritonAttentionColumnSums(TritonTemplate):
    """Scores are computed twice and never leave the chip; one number per query does, its log sum.

    float32 is multiplied by FMA instructions, half precision by tensor cores with float32 sums.
    """

    name: ClassVar[str] = "triton_attention_column_sums"
    operator: ClassVar[str] = "attention_column_sums"

    def supports(self, problem: Problem) -> Rejection | None:
        query, bias = problem.tensor(0), problem.tensor(2)
        if bias is not None and bias.dtype not in TYPES:
            return Rejection("kernel_dtype", self.name, f"bias is {bias.dtype}", "cast to float32")
        if query is not None and (query.shape[0] or 1) * (query.shape[1] or 1) > MAX_GRID_Y:
            return Rejection("kernel_shape", self.name, f"more than {MAX_GRID_Y} samples x heads")
        return unsupported(self.name, query) or unsupported(self.name, problem.tensor(1))

    def parameters(self, problem: Problem) -> Parameters:
        query, bias = problem.tensor(0), problem.tensor(2)
        if query is None:
            raise InternalError(f"{self.name}: a problem without queries was not rejected")
        exact = query.dtype == torch.float32
        return {
            "dot_dtype": DOT_DTYPES[TYPES[query.dtype]],
            "query_type": TYPES[query.dtype],
            "bias_type": "none" if bias is None else TYPES[bias.dtype],
            "block_queries": 64,
            # Sizes that spill no register: products of float32 unroll to FMA instructions.
            "block_keys": 32 if exact else 64,
            "block_width": 16 if exact else power_of_two(query.shape[3], 16, 64),
            "has_bias": bias is not None,
            "causal": bool(problem.arguments[3]),
            "num_warps": 8,
            "num_stages": 1 if exact else 2,
        }

    def render(self, parameters: Parameters) -> str:
        return SOURCE.substitute(parameters, max_sample_elements=MAX_SAMPLE_ELEMENTS)

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        strides = tuple(
            f"{name}_stride_{of}" for name in ("query", "keys") for of in ("batch", "head", "token")
        )
        of_bias = tuple(f"bias_stride_{of}" for of in ("batch", "head", "query"))
        numbers = ("queries", "tokens", "width", "heads", "group")
        given, pointer = bool(parameters["has_bias"]), f"*{parameters['query_type']}"
        passes = (("row_log_sums", ("log_sums",)), ("column_sums", ("log_sums", "out")))
        return tuple(
            AheadOfTime(
                function=function,
                signature={
                    "query": pointer,
                    "keys": pointer,
                    "bias": f"*{parameters['bias_type']}" if given else "constexpr",
                    **dict.fromkeys(results, "*fp32"),
                    "scale": "fp32",
                    **dict.fromkeys((*numbers, *strides, *of_bias), "i32"),
                },
                constants={} if given else {"bias": None},
                divisible=("query", "keys", *results, "width", *strides),
                options={
                    "num_warps": int(parameters["num_warps"]),
                    "num_stages": int(parameters["num_stages"]),
                },
                tensor_cores=parameters["query_type"] != "fp32",
            )
            for function, results in passes
        )
