"""C++ kernel of `tokenpass::sparse_output_gemv`: four listed rows of the weight at a time."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.dots import dots
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse import CHECK_LIST, SCRATCH
from tokenpass.codegen.cpp.sparse_template import (
    EXPORT,
    SparseTemplate,
    block_of,
    require_list,
    stored,
)
from tokenpass.codegen.cpp.template import POINTER, SIZE
from tokenpass.codegen.cpp.texts import Inputs, addresses, canonical, described, rows_of
from tokenpass.codegen.cpp.vectors import prelude

SOURCE = Template("""\
$export sparse_output_gemv(
    const $x_stored *x, const int32_t *index, const int32_t *count, const $stored *weight,
    $declarations
    float *h, int64_t rows, int64_t entries, int64_t width, int64_t x_row,
    int64_t weight_row, int64_t threads) {
    int64_t active = *count;
    int status = check_list(index, active, entries);
    if (status) return status;
    float *wide = (float *)scratch(rows * width * sizeof(float));
    if (!wide) return NO_MEMORY;
    $given
    widened<$stored>(x, x_row, wide, rows, width);
    threads = useful_threads(rows * active * width, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < active; chunk += CHUNK) {
        int64_t stop = chunk + CHUNK < active ? chunk + CHUNK : active;
        for (int64_t j = chunk; j < stop; j += DOT_LANES)
            listed_dots(wide, rows, width, index, j, active, weight, weight_row, h, entries);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t j = chunk; j < stop; j += W) {
                int64_t n = stop - j < W ? stop - j : W;
                float *to = h + row * entries + j;
                store_part(to, epilogue<true>(load_part(to, n), e, row, index + j, n), n);
            }
    }
    return 0;
}
""")


class CppSparseOutputGemv(SparseTemplate):
    """Threads share the list, not the neurons, so that all have as much to do.

    Lanes run along a weight's row; four rows of it and up to four of x are multiplied in registers.
    """

    name: ClassVar[str] = "cpp_sparse_output_gemv"
    operator: ClassVar[str] = "sparse_output_gemv"

    def details(self, problem: Problem) -> Parameters:
        return {
            "x_stored": stored(self.name, problem.tensor(0)),
            "stored": stored(self.name, problem.tensor(3)),
            "rows": block_of(problem.tensor(0)),
            "inputs": described(problem.tensors(4)),
            "epilogue": canonical(problem.text(5)),
        }

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        inputs = Inputs("epilogue", str(parameters["inputs"]))
        return (*(POINTER,) * 4, *inputs.argument_kinds, POINTER, *(SIZE,) * 6)

    def render(self, parameters: Parameters) -> str:
        isa, inputs = str(parameters["isa"]), Inputs("epilogue", str(parameters["inputs"]))
        return (
            prelude(isa)
            + mathematics()
            + inputs.function(str(parameters["epilogue"]), by_index=True)
            + SCRATCH
            + dots(isa, int(parameters["rows"]))
            + CHECK_LIST
            + SOURCE.substitute(
                export=EXPORT,
                x_stored=parameters["x_stored"],
                stored=parameters["stored"],
                declarations=inputs.declarations,
                given=inputs.given,
            )
        )

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(
            x: Tensor,
            index: Tensor,
            count: Tensor,
            weight: Tensor,
            inputs: list[Tensor],
            epilogue: str,
            density: float = 1.0,
        ) -> Tensor:
            rows, (entries, width) = x.shape[0], weight.shape
            x, index, weight = rows_of(x), index.contiguous(), rows_of(weight)
            lines = list(map(rows_of, inputs))
            h = torch.zeros((rows, entries), dtype=torch.float32)
            status = function(
                x.data_ptr(),
                index.data_ptr(),
                count.data_ptr(),
                weight.data_ptr(),
                *addresses(lines),
                h.data_ptr(),
                rows,
                entries,
                width,
                x.stride(0),
                weight.stride(0),
                torch.get_num_threads(),
            )
            if status:
                require_list(self.operator, status, int(count), entries)
            return h

        return launch
