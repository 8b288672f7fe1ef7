"""C++ kernel of `tokenpass::few_rows_linear`: rows of the weight as they are stored, in turn."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.dots import dots
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse import SCRATCH
from tokenpass.codegen.cpp.sparse_template import (
    EXPORT,
    SparseTemplate,
    block,
    require_memory,
    stored,
)
from tokenpass.codegen.cpp.template import POINTER, SIZE
from tokenpass.codegen.cpp.texts import Inputs, addresses, canonical, described, most_rows, rows_of
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.ops.sparse_list import common_size

SOURCE = Template("""\
// v = prologue(inputs), in the order in which a weight of type T is loaded.
template <typename T> static void before(
    PrologueInputs in, float *to, int64_t rows, int64_t width) {
    vf y = all(0.0f);
    for (int64_t row = 0; row < rows; row++) {
        float *line = to + row * width;
        int64_t at = 0;
        for (; at + 2 * W <= width; at += 2 * W) {
            vf a = prologue<false>(y, in, row, at, W);
            vf b = prologue<false>(y, in, row, at + W, W);
            split(a, b, T());
            store(line + at, a);
            store(line + at + W, b);
        }
        for (; at < width; at += W) {
            int64_t n = width - at < W ? width - at : W;
            store_part(line + at, prologue<true>(y, in, row, at, n), n);
        }
    }
}

$export few_rows_linear(
    $declarations
    const $stored *weight, $more_declarations
    $stored *out, int64_t rows, int64_t width, int64_t outputs, int64_t weight_row,
    int64_t threads) {
    float *x = (float *)scratch(rows * (width + outputs) * sizeof(float) + 64);
    if (!x) return NO_MEMORY;
    float *y = x + rows * width;
    $given
    $more_given
    before<$stored>(p, x, rows, width);
    threads = useful_threads(rows * outputs * width, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < outputs; chunk += CHUNK) {
        int64_t stop = chunk + CHUNK < outputs ? chunk + CHUNK : outputs;
        for (int64_t at = chunk; at < stop; at += DOT_LANES)
            listed_dots(x, rows, width, nullptr, at, outputs, weight, weight_row, y, outputs);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t at = chunk; at < stop; at += W) {
                int64_t n = stop - at < W ? stop - at : W, from = row * outputs + at;
                store_part(out + from, epilogue<true>(load_part(y + from, n), e, row, at, n), n);
            }
    }
    return 0;
}
""")


class CppFewRowsLinear(SparseTemplate):
    """Up to eight rows of the weight at once, each a stream that the hardware follows.

    Threads share the weight's rows, so that each reads one stretch of memory.
    """

    name: ClassVar[str] = "cpp_few_rows_linear"
    operator: ClassVar[str] = "few_rows_linear"

    def details(self, problem: Problem) -> Parameters:
        return {
            "inputs": described(problem.tensors(0)),
            "prologue": canonical(problem.text(1)),
            "stored": stored(self.name, problem.tensor(2)),
            "rows": block(most_rows(problem.tensors(0))),
            "extras": described(problem.tensors(3)),
            "epilogue": canonical(problem.text(4)),
        }

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        inputs, extras = _both(parameters)
        return (
            *inputs.argument_kinds,
            POINTER,
            *extras.argument_kinds,
            POINTER,
            *(SIZE,) * 5,
        )

    def render(self, parameters: Parameters) -> str:
        inputs, extras = _both(parameters)
        isa = str(parameters["isa"])
        return (
            prelude(isa)
            + mathematics()
            + inputs.function(str(parameters["prologue"]))
            + extras.function(str(parameters["epilogue"]))
            + SCRATCH
            + dots(isa, int(parameters["rows"]))
            + SOURCE.substitute(
                export=EXPORT,
                stored=parameters["stored"],
                declarations=inputs.declarations,
                given=inputs.given,
                more_declarations=extras.declarations,
                more_given=extras.given,
            )
        )

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(
            inputs: list[Tensor],
            prologue: str,
            weight: Tensor,
            extras: list[Tensor],
            epilogue: str,
        ) -> Tensor:
            rows, width = common_size(self.operator, inputs)
            outputs = weight.shape[0]
            lines, more, weight = (
                list(map(rows_of, inputs)),
                list(map(rows_of, extras)),
                rows_of(weight),
            )
            out = torch.empty((rows, outputs), dtype=weight.dtype)
            status = function(
                *addresses(lines),
                weight.data_ptr(),
                *addresses(more),
                out.data_ptr(),
                rows,
                width,
                outputs,
                weight.stride(0),
                torch.get_num_threads(),
            )
            require_memory(self.operator, status)
            return out

        return launch


def _both(parameters: Parameters) -> tuple[Inputs, Inputs]:
    prologue, epilogue = str(parameters["inputs"]), str(parameters["extras"])
    return Inputs("prologue", prologue), Inputs("epilogue", epilogue)
