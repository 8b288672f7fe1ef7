"""C++ kernel of `tokenpass::merge_tokens`: each merged token is summed by one thread, in order."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.template import POINTER, SIZE, CppTemplate, float_type, not_float
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.edits import Rejection
from tokenpass.errors import CallError

SOURCE = Template("""\
// Weighted sums over segments: out[b, s] = sum of shares[b, i] x[b, i] where segment[b, i] = s.
typedef $stored T;
constexpr int64_t BLOCK = 8;  // vectors that are summed in registers

// Each segment's tokens in rising order: first[s], then next[token], until -1. Tokens are put in
// from the last to the first. 1: a segment is out of range.
static int list_tokens(const int64_t *segment, int32_t *first, int32_t *next, int64_t tokens,
                       int64_t count) {
    for (int64_t place = 0; place < count; place++) first[place] = -1;
    for (int64_t token = tokens - 1; token >= 0; token--) {
        int64_t place = segment[token];
        if (place < 0 || place >= count) return 1;
        next[token] = first[place];
        first[place] = (int32_t)token;
    }
    return 0;
}

static void sum_segment(const T *x, int64_t stride, const float *shares, int32_t first,
                        const int32_t *next, T *out, int64_t width) {
    int64_t at = 0;
    for (; at + BLOCK * W <= width; at += BLOCK * W) {
        vf total[BLOCK];
        for (int64_t v = 0; v < BLOCK; v++) total[v] = all(0.0f);
        for (int32_t token = first; token >= 0; token = next[token]) {
            vf share = all(shares[token]);
            const T *row = x + token * stride + at;
            for (int64_t v = 0; v < BLOCK; v++) total[v] += share * load(row + v * W);
        }
        for (int64_t v = 0; v < BLOCK; v++) store(out + at + v * W, total[v]);
    }
    for (; at < width; at += W) {
        int64_t left = width - at < W ? width - at : W;
        vf total = all(0.0f);
        for (int32_t token = first; token >= 0; token = next[token]) {
            const T *row = x + token * stride + at;
            total += all(shares[token]) * (left == W ? load(row) : load_part(row, left));
        }
        if (left == W) store(out + at, total);
        else store_part(out + at, total, left);
    }
}

// lists: batch x (count + tokens) places for the lists of tokens.
extern "C" __attribute__((visibility("default"))) int merge_tokens(
    const T *x, const int64_t *segment, const float *shares, int32_t *lists, T *out, int64_t batch,
    int64_t tokens, int64_t count, int64_t width, int64_t stride_batch, int64_t stride_token,
    int64_t threads) {
    int outside = 0;
    int64_t places = count + tokens;
    threads = useful_threads(batch * tokens * width, threads);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) reduction(|| : outside)
        for (int64_t sample = 0; sample < batch; sample++)
            outside = outside || list_tokens(segment + sample * tokens, lists + sample * places,
                                             lists + sample * places + count, tokens, count);
        if (!outside) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < batch * count; row++) {
                int64_t sample = row / count;
                const int32_t *first = lists + sample * places;
                sum_segment(x + sample * stride_batch, stride_token, shares + sample * tokens,
                            first[row % count], first + count, out + row * width, width);
            }
        }
    }
    return outside;
}
""")


class CppMergeTokens(CppTemplate):
    """Every row is read once and written once; sums do not depend on the number of threads."""

    name: ClassVar[str] = "cpp_merge_tokens"
    operator: ClassVar[str] = "merge_tokens"
    any_threads: ClassVar[bool] = True

    def supports(self, problem: Problem) -> Rejection | None:
        x = problem.tensor(0)
        if x is not None and x.shape[1] is not None and x.shape[1] >= 2**31:
            return Rejection("kernel_shape", self.name, f"{x.shape[1]} tokens exceed 32 bits")
        return not_float(self.name, x)

    def details(self, problem: Problem) -> Parameters:
        return {"stored": float_type(self.name, problem.tensor(0))}

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        return (POINTER,) * 5 + (SIZE,) * 7

    def render(self, parameters: Parameters) -> str:
        return prelude(str(parameters["isa"])) + SOURCE.substitute(parameters)

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(x: Tensor, segment: Tensor, shares: Tensor, count: int) -> Tensor:
            batch, tokens, width = x.shape
            if batch * tokens * count * width == 0:
                return torch.zeros((batch, count, width), dtype=x.dtype)
            out = torch.empty((batch, count, width), dtype=x.dtype)
            x = x if x.stride(2) == 1 else x.contiguous()
            segment, shares = segment.contiguous(), shares.float().contiguous()
            lists = torch.empty(batch * (count + tokens), dtype=torch.int32)
            outside = function(
                x.data_ptr(),
                segment.data_ptr(),
                shares.data_ptr(),
                lists.data_ptr(),
                out.data_ptr(),
                batch,
                tokens,
                count,
                width,
                x.stride(0),
                x.stride(1),
                torch.get_num_threads(),
            )
            if outside:
                raise CallError(
                    f"tokenpass::merge_tokens: segments must lie in 0 .. {count - 1}, "
                    f"got {int(segment.min())} .. {int(segment.max())}"
                )
            return out

        return launch
