"""C++ kernel of `tokenpass::gather_tokens`: rows copied as bytes, whatever their dtype."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.template import POINTER, SIZE, CppTemplate
from tokenpass.edits import Rejection
from tokenpass.errors import CallError

SOURCE = Template("""\
#include <cstdint>
#include <cstring>

// Some tokens of every sample: out[b, j] = x[b, index[b, j]]. 1: an index is out of range.
extern "C" __attribute__((visibility("default"))) int gather_tokens(
    const char *x, const int64_t *index, char *out, int64_t batch, int64_t tokens, int64_t count,
    int64_t row_bytes, int64_t batch_bytes, int64_t token_bytes, int64_t index_stride,
    int64_t threads) {
    int outside = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(|| : outside)
    for (int64_t row = 0; row < batch * count; row++) {
        int64_t sample = row / count, token = index[sample * index_stride + row % count];
        if (token < 0 || token >= tokens) {
            outside = 1;
            continue;
        }
        memcpy(out + row * row_bytes, x + sample * batch_bytes + token * token_bytes, row_bytes);
    }
    return outside;
}
""")


class CppGatherTokens(CppTemplate):
    """Bound by memory, so that the instruction set does not matter."""

    name: ClassVar[str] = "cpp_gather_tokens"
    operator: ClassVar[str] = "gather_tokens"
    isas: ClassVar[tuple[str, ...]] = ("scalar",)
    any_threads: ClassVar[bool] = True

    def supports(self, problem: Problem) -> Rejection | None:
        return None

    def details(self, problem: Problem) -> Parameters:
        return {}

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        return (POINTER,) * 3 + (SIZE,) * 8

    def render(self, parameters: Parameters) -> str:
        return SOURCE.substitute(parameters)

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(x: Tensor, index: Tensor) -> Tensor:
            batch, tokens, width = x.shape
            count = index.shape[1]
            out = torch.empty((batch, count, width), dtype=x.dtype)
            if out.numel() == 0:
                return out
            x = x if x.stride(2) == 1 else x.contiguous()
            index = index if index.stride(1) == 1 else index.contiguous()
            size = x.element_size()
            outside = function(
                x.data_ptr(),
                index.data_ptr(),
                out.data_ptr(),
                batch,
                tokens,
                count,
                width * size,
                x.stride(0) * size,
                x.stride(1) * size,
                0 if index.shape[0] == 1 else index.stride(0),
                torch.get_num_threads(),
            )
            if outside:
                raise CallError(
                    f"tokenpass::gather_tokens: index out of bounds, it must lie in 0 .. "
                    f"{tokens - 1}; got {int(index.min())} .. {int(index.max())}"
                )
            return out

        return launch
