"""C++ kernel of `tokenpass::farthest_point`: threads share tokens, choices follow each other."""

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
from tokenpass.ops.farthest_point import CHOSEN, PADDING

SOURCE = Template("""\
// Greedy max-min selection: the next choice is the token farthest from all choices before it.
typedef $stored T;
constexpr float CHOSEN = $chosen;

static inline float squared_distance(const T *left, const T *right, int64_t width) {
    vf total[2] = {all(0.0f), all(0.0f)};
    int64_t at = 0;
    for (; at + 2 * W <= width; at += 2 * W)
        for (int64_t v = 0; v < 2; v++) {
            vf apart = load(left + at + v * W) - load(right + at + v * W);
            total[v] += apart * apart;
        }
    for (; at < width; at += W) {
        int64_t rest = width - at < W ? width - at : W;
        vf apart = rest == W ? load(left + at) - load(right + at)
                             : load_part(left + at, rest) - load_part(right + at, rest);
        total[0] += apart * apart;
    }
    vf both = total[0] + total[1];
    return sums(both, both, both, both)[0];
}

// The farthest token, the lowest where equal.
static int64_t farthest(const float *nearest, int64_t tokens) {
    int64_t best = 0;
    for (int64_t token = 1; token < tokens; token++)
        if (nearest[token] > nearest[best]) best = token;
    return best;
}

// nearest [batch, tokens]: infinite, or below zero for padding. 1: a first token is out of range.
extern "C" __attribute__((visibility("default"))) int farthest_point(
    const T *x, float *nearest, const int64_t *first, int64_t *index, int64_t batch,
    int64_t tokens, int64_t count, int64_t width, int64_t stride_batch, int64_t stride_token,
    int64_t first_stride, int64_t threads) {
    for (int64_t sample = 0; sample < batch; sample++) {
        int64_t start = first[sample * first_stride];
        if (start < 0 || start >= tokens) return 1;
        index[sample * count] = start;
    }
    threads = useful_threads(batch * tokens * width, threads);
#pragma omp parallel num_threads(threads)
    for (int64_t step = 1; step < count; step++) {
#pragma omp for schedule(static)
        for (int64_t at = 0; at < batch * tokens; at++) {
            int64_t sample = at / tokens, token = at % tokens;
            int64_t chosen = index[sample * count + step - 1];
            const T *rows = x + sample * stride_batch;
            float apart = squared_distance(rows + token * stride_token,
                                           rows + chosen * stride_token, width);
            if (apart < nearest[at]) nearest[at] = apart;  // one that is NaN does not count
            if (token == chosen) nearest[at] = CHOSEN;
        }
#pragma omp for schedule(static)
        for (int64_t sample = 0; sample < batch; sample++)
            index[sample * count + step] = farthest(nearest + sample * tokens, tokens);
    }
    return 0;
}
""")


class CppFarthestPoint(CppTemplate):
    """Distances are sums of squared differences in float32, each by one thread."""

    name: ClassVar[str] = "cpp_farthest_point"
    operator: ClassVar[str] = "farthest_point"
    any_threads: ClassVar[bool] = True

    def supports(self, problem: Problem) -> Rejection | None:
        return not_float(self.name, problem.tensor(0))

    def details(self, problem: Problem) -> Parameters:
        return {"stored": float_type(self.name, problem.tensor(0))}

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        return (POINTER,) * 4 + (SIZE,) * 8

    def render(self, parameters: Parameters) -> str:
        source = SOURCE.substitute(parameters, chosen=f"{CHOSEN}f")
        return prelude(str(parameters["isa"])) + source

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(x: Tensor, count: int, first: Tensor, sizes: Tensor | None = None) -> Tensor:
            batch, tokens, width = x.shape
            index = torch.empty((batch, count), dtype=torch.int64)
            if index.numel() == 0:
                return index
            x = x if x.stride(2) == 1 else x.contiguous()
            nearest = torch.full((batch, tokens), torch.inf, dtype=torch.float32)
            if sizes is not None:
                nearest.masked_fill_(sizes == 0, PADDING)
            outside = function(
                x.data_ptr(),
                nearest.data_ptr(),
                first.data_ptr(),
                index.data_ptr(),
                batch,
                tokens,
                count,
                width,
                x.stride(0),
                x.stride(1),
                0 if first.shape[0] == 1 else first.stride(0),
                torch.get_num_threads(),
            )
            if outside:
                raise CallError(
                    f"tokenpass::farthest_point: first must lie in 0 .. {tokens - 1}, "
                    f"got {first.tolist()}"
                )
            return index

        return launch
