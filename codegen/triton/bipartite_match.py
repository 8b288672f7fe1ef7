"""Triton kernel of `tokenpass::bipartite_match`: one program per sample and block of sources."""

from __future__ import annotations

from string import Template
from typing import ClassVar

import torch

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.triton.template import AheadOfTime, TritonTemplate
from tokenpass.edits import Rejection
from tokenpass.errors import InternalError

MAX_BATCH = 65535
"""Most blocks that CUDA allows in the second dimension of a grid."""

MAX_SAMPLE_ELEMENTS = 2**31 - 1
"""Offsets within one sample are 32-bit in the kernel."""

DOT_DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}

SOURCE = Template('''\
"""Best target (odd token) of each source (even token) by the mean of its heads' cosines.

score[b, i] = max_j mean_h cos(keys[b, 2i, h], keys[b, 2j + 1, h]),  partner[b, i] = lowest such j
"""

import torch
import triton
import triton.language as tl

BLOCK_SOURCES = tl.constexpr($block_sources)
BLOCK_TARGETS = tl.constexpr($block_targets)
BLOCK_CHANNELS = tl.constexpr($block_channels)  # channels beyond `width` are loaded as zero
HAS_BLOCKED = tl.constexpr($has_blocked)
MINUS_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def bipartite_match(
    keys,
    norms,
    blocked,
    score,
    partner,
    tokens,
    sources,
    targets,
    heads,
    width,
    keys_stride_batch,
    keys_stride_token,
):
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_SOURCES + tl.arange(0, BLOCK_SOURCES)
    channels = tl.arange(0, BLOCK_CHANNELS)
    keys += sample * keys_stride_batch
    norms += sample * tokens * heads
    source = keys + (2 * row)[:, None] * keys_stride_token
    best = tl.full([BLOCK_SOURCES], MINUS_INFINITY, tl.float32)
    best_at = tl.zeros([BLOCK_SOURCES], tl.int32)
    for first in range(0, targets, BLOCK_TARGETS):
        column = first + tl.arange(0, BLOCK_TARGETS)
        target = keys + (2 * column + 1)[None, :] * keys_stride_token
        tile = tl.zeros([BLOCK_SOURCES, BLOCK_TARGETS], tl.float32)
        for head in range(0, heads):
            product = tl.zeros([BLOCK_SOURCES, BLOCK_TARGETS], tl.float32)
            for start in range(0, width, BLOCK_CHANNELS):
                inside = start + channels < width
                channel = head * width + start + channels
                left = tl.load(
                    source + channel[None, :],
                    mask=(row < sources)[:, None] & inside[None, :],
                    other=0.0,
                ).to(tl.$dot_dtype)
                right = tl.load(
                    target + channel[:, None],
                    mask=(column < targets)[None, :] & inside[:, None],
                    other=0.0,
                ).to(tl.$dot_dtype)
                # Products of half-precision numbers are exact in float32, so that dividing by the
                # norms after the dot product loses nothing; "ieee" keeps float32 from TF32.
                product = tl.dot(
                    left, right, product, input_precision="ieee", out_dtype=tl.float32
                )
            source_norm = tl.load(
                norms + (2 * row) * heads + head, mask=row < sources, other=1.0
            )
            target_norm = tl.load(
                norms + (2 * column + 1) * heads + head, mask=column < targets, other=1.0
            )
            tile += product / source_norm[:, None] / target_norm[None, :]
        allowed = column < targets
        if HAS_BLOCKED:
            no = tl.load(
                blocked + sample * tokens + 2 * column + 1, mask=column < targets, other=1
            )
            allowed = allowed & (no == 0)
        tile = tl.where(allowed[None, :], tile, MINUS_INFINITY)
        top, at = tl.max(tile, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = top > best  # strictly: equal scores stay with the earlier block
        best = tl.where(better, top, best)
        best_at = tl.where(better, first + at, best_at)
    best = best / heads
    if HAS_BLOCKED:
        no = tl.load(blocked + sample * tokens + 2 * row, mask=row < sources, other=1)
        best = tl.where(no == 0, best, MINUS_INFINITY)
    place = sample * sources + row
    tl.store(score + place, best, mask=row < sources)
    tl.store(partner + place, best_at.to(tl.int64), mask=row < sources)


def launch(keys, sizes=None, protected=None, heads=1):
    batch, tokens, channels = keys.shape
    sources, targets = (tokens + 1) // 2, tokens // 2
    if keys.stride(2) != 1 or tokens * keys.stride(1) > $max_sample_elements:
        keys = keys.contiguous()
    score = torch.empty((batch, sources), dtype=torch.float32, device=keys.device)
    partner = torch.empty((batch, sources), dtype=torch.int64, device=keys.device)
    if score.numel() == 0:
        return score, partner
    apart = keys.unflatten(2, (heads, channels // heads))
    norms = torch.linalg.vector_norm(apart, dim=-1, dtype=torch.float32).clamp_min_(1e-12)
    blocked = None
    if $has_blocked:
        shape = (batch, tokens)
        blocked = keys.new_zeros(shape, dtype=torch.bool) if sizes is None else sizes == 0
        if protected is not None:
            blocked = blocked.scatter(1, protected.expand(batch, -1), True)
        blocked = blocked.contiguous().view(torch.uint8)
    bipartite_match[(triton.cdiv(sources, $block_sources), batch)](
        keys,
        norms.contiguous(),
        blocked,
        score,
        partner,
        tokens,
        sources,
        targets,
        heads,
        channels // heads,
        keys.stride(0),
        keys.stride(1),
        num_warps=$num_warps,
        num_stages=$num_stages,
    )
    return score, partner
''')


class TritonBipartiteMatch(TritonTemplate):
    """Blocks of sources stay on chip while all targets pass by; no similarity leaves it.

    float32 keys are multiplied by FMA instructions (about 1e-7 relative), half-precision keys by
    tensor cores with float32 sums.
    """

    name: ClassVar[str] = "triton_bipartite_match"
    operator: ClassVar[str] = "bipartite_match"

    def supports(self, problem: Problem) -> Rejection | None:
        keys = problem.tensor(0)
        if keys is None or keys.dtype not in DOT_DTYPES:
            given = None if keys is None else keys.dtype
            return Rejection("kernel_dtype", self.name, f"keys are {given}", "cast to float32")
        batch, tokens, channels = keys.shape
        if batch is not None and batch > MAX_BATCH:
            return Rejection("kernel_shape", self.name, f"batch {batch} exceeds {MAX_BATCH}")
        if tokens is not None and channels is not None and tokens * channels > MAX_SAMPLE_ELEMENTS:
            return Rejection("kernel_shape", self.name, f"{tokens} tokens need 64-bit offsets")
        return None

    def parameters(self, problem: Problem) -> Parameters:
        keys, heads = problem.tensor(0), problem.arguments[3]
        if keys is None:
            raise InternalError(f"{self.name}: a problem without keys was not rejected")
        channels, narrow = keys.shape[2], 32
        if channels is not None and isinstance(heads, int):
            narrow = min(32, max(16, 1 << (channels // heads - 1).bit_length()))
        # Sizes that spill no register on sm_80 and sm_90: float32 products unroll to FMA
        # instructions, half-precision ones keep fragments of both operands.
        is_float32 = keys.dtype == torch.float32
        return {
            "dot_dtype": DOT_DTYPES[keys.dtype],
            "block_sources": 64 if is_float32 else 32,
            "block_targets": 64,
            "block_channels": 16 if is_float32 else narrow,
            "has_blocked": problem.tensor(1) is not None or problem.tensor(2) is not None,
            "num_warps": 8,
            "num_stages": 1,
        }

    def render(self, parameters: Parameters) -> str:
        return SOURCE.substitute(parameters, max_sample_elements=MAX_SAMPLE_ELEMENTS)

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        keys = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
        given = bool(parameters["has_blocked"])
        strides = ("keys_stride_batch", "keys_stride_token")
        integers = ("tokens", "sources", "targets", "heads", "width", *strides)
        signature = {
            "keys": keys[str(parameters["dot_dtype"])],
            "norms": "*fp32",
            "blocked": "*u8" if given else "constexpr",
            "score": "*fp32",
            "partner": "*i64",
            **dict.fromkeys(integers, "i32"),
        }
        return (
            AheadOfTime(
                function="bipartite_match",
                signature=signature,
                constants={} if given else {"blocked": None},
                divisible=("keys", "norms", "score", "partner", *strides),
                options={
                    "num_warps": int(parameters["num_warps"]),
                    "num_stages": int(parameters["num_stages"]),
                },
                tensor_cores=parameters["dot_dtype"] != "float32",
            ),
        )
