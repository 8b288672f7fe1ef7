"""C++ kernel of `tokenpass::row_stats_relu`: three passes over a row that stays in the cache."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse_template import EXPORT, SparseTemplate, stored
from tokenpass.codegen.cpp.template import NUMBER, POINTER, SIZE
from tokenpass.codegen.cpp.texts import rows_of
from tokenpass.codegen.cpp.vectors import prelude

SOURCE = Template("""\
static float total(vf a, vf b, vf c, vf d) {
    v4f sum = sums(a, b, c, d);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The sum of x - from over a row, or of its squares; four vectors at once.
template <bool squared, typename T> static float sum_of(const T *x, int64_t columns, float from) {
    vf sum[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
    for (int64_t at = 0; at < columns; at += W) {
        int64_t n = columns - at < W ? columns - at : W;
        vf value = n == W ? load(x + at) - from : load_part(x + at, n) - from;
        if (n < W) {  // what is not there is not x - from
            float part[W] = {};
            memcpy(part, &value, n * sizeof(float));
            value = load(part);
        }
        sum[at / W % 4] += squared ? value * value : value;
    }
    return total(sum[0], sum[1], sum[2], sum[3]);
}

$export row_stats_relu(
    const $stored *x, $stored *out, float deviations, int64_t rows, int64_t columns, int64_t x_row,
    int64_t threads) {
    threads = useful_threads(rows * columns, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const $stored *from = x + row * x_row;
        $stored *to = out + row * columns;
        float mean = sum_of<false>(from, columns, 0.0f) / (float)columns;
        float deviation = __builtin_sqrtf(sum_of<true>(from, columns, mean) / (float)columns);
        vf cut = all(mean + deviations * deviation);
        int64_t at = 0;
        for (; at + W <= columns; at += W) store(to + at, relu(load(from + at) - cut));
        if (at < columns)
            store_part(to + at, relu(load_part(from + at, columns - at) - cut), columns - at);
    }
    return 0;
}
""")


class CppRowStatsRelu(SparseTemplate):
    """Mean, deviation and cut of a row in float32; threads share the rows."""

    name: ClassVar[str] = "cpp_row_stats_relu"
    operator: ClassVar[str] = "row_stats_relu"

    def details(self, problem: Problem) -> Parameters:
        return {"stored": stored(self.name, problem.tensor(0))}

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        return (POINTER, POINTER, NUMBER, *(SIZE,) * 4)

    def render(self, parameters: Parameters) -> str:
        source = SOURCE.substitute(export=EXPORT, stored=parameters["stored"])
        return prelude(str(parameters["isa"])) + mathematics() + source

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(x: Tensor, deviations: float) -> Tensor:
            x = rows_of(x)
            rows, columns = x.shape
            out = torch.empty((rows, columns), dtype=x.dtype)
            function(
                x.data_ptr(),
                out.data_ptr(),
                deviations,
                rows,
                columns,
                x.stride(0),
                torch.get_num_threads(),
            )
            return out

        return launch
