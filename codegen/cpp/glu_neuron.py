"""C++ kernel of `tokenpass::glu_neuron`: list, rows of the up weight, rows of the down weight."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse import combine, compact, dots
from tokenpass.codegen.cpp.sparse_input_gemv import block_of, stored
from tokenpass.codegen.cpp.sparse_template import EXPORT, SparseTemplate
from tokenpass.codegen.cpp.template import POINTER, SIZE
from tokenpass.codegen.cpp.texts import Inputs, addresses, canonical, described, rows_of
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.codegen.packed import PACKED

SOURCE = Template("""\
$export glu_neuron(
    const $x_stored *x, $declarations
    const float *threshold, int64_t threshold_step, const $up_stored *up,
    const $bias_stored *up_bias, const $stored *packed, $more_declarations
    int32_t *index, float *kept, float *wide, float *h, $stored *out, int64_t rows,
    int64_t neurons, int64_t width, int64_t outputs, int64_t x_row, int64_t up_row,
    int64_t packed_row, int64_t threads) {
    $given
    $more_given
    int64_t active = compact(p, threshold, threshold_step, index, kept, rows, neurons);
    widened<$up_stored>(x, x_row, wide, rows, width);
    int64_t useful = useful_threads(rows * active * width, threads);
#pragma omp parallel for schedule(static) num_threads(useful)
    for (int64_t chunk = 0; chunk < active; chunk += CHUNK) {
        int64_t stop = chunk + CHUNK < active ? chunk + CHUNK : active;
        for (int64_t j = chunk; j < stop; j += DOT_LANES)
            listed_dots(wide, rows, width, index, j, active, up, up_row, h, neurons);
        for (int64_t j = chunk; j < stop; j += W) {
            int64_t n = stop - j < W ? stop - j : W;
            vf bias = up_bias ? gather(up_bias, index + j, n) : all(0.0f);
            for (int64_t row = 0; row < rows; row++) {
                float *to = kept + row * neurons + j;
                vf u = load_part(h + row * neurons + j, n) + bias;
                store_part(to, load_part(to, n) * u, n);
            }
        }
    }
    combine(packed, packed_row, index, kept, neurons, active, e, out, rows, outputs, threads);
    return 0;
}
""")


class CppGluNeuron(SparseTemplate):
    """The three parts in one call: one list, and no tensor between them but the list's values."""

    name: ClassVar[str] = "cpp_glu_neuron"
    operator: ClassVar[str] = "glu_neuron"

    def details(self, problem: Problem) -> Parameters:
        bias = problem.tensor(5)
        return {
            "x_stored": stored(self.name, problem.tensor(0)),
            "up_stored": stored(self.name, problem.tensor(4)),
            "bias_stored": "float" if bias is None else stored(self.name, bias),
            "stored": stored(self.name, problem.tensor(6)),
            "rows": block_of(problem.tensor(0)),
            "inputs": described(problem.tensors(1)),
            "prologue": canonical(problem.text(2)),
            "has_threshold": problem.tensor(3) is not None,
            "extras": described(problem.tensors(7)),
            "epilogue": canonical(problem.text(8)),
        }

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        inputs, extras = _both(parameters)
        return (
            POINTER,
            *inputs.argument_kinds,
            *(POINTER, SIZE, POINTER, POINTER, POINTER),
            *extras.argument_kinds,
            *(POINTER,) * 5,
            *(SIZE,) * 8,
        )

    def render(self, parameters: Parameters) -> str:
        isa, rows = str(parameters["isa"]), int(parameters["rows"])
        inputs, extras = _both(parameters)
        stored_as = ("x_stored", "up_stored", "bias_stored", "stored")
        return (
            prelude(isa)
            + mathematics()
            + inputs.function(str(parameters["prologue"]))
            + extras.function(str(parameters["epilogue"]))
            + compact(bool(parameters["has_threshold"]))
            + dots(isa, rows)
            + combine(isa, rows)
            + SOURCE.substitute(
                {name: parameters[name] for name in stored_as},
                export=EXPORT,
                declarations=inputs.declarations,
                given=inputs.given,
                more_declarations=extras.declarations,
                more_given=extras.given,
            )
        )

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(
            x: Tensor,
            inputs: list[Tensor],
            prologue: str,
            threshold: Tensor | None,
            up: Tensor,
            up_bias: Tensor | None,
            down: Tensor,
            extras: list[Tensor],
            epilogue: str,
            density: float = 1.0,
        ) -> Tensor:
            (rows, width), (outputs, neurons) = x.shape, down.shape
            packed = PACKED.transposed(down)
            x, up = rows_of(x), rows_of(up)
            lines, more = list(map(rows_of, inputs)), list(map(rows_of, extras))
            limits = None if threshold is None else threshold.contiguous()
            bias = None if up_bias is None else up_bias.contiguous()
            index = torch.empty(neurons, dtype=torch.int32)
            values = torch.empty(rows * (2 * neurons + width), dtype=torch.float32)
            kept = values.data_ptr()
            out = torch.empty((rows, outputs), dtype=packed.dtype)
            function(
                x.data_ptr(),
                *addresses(lines),
                None if limits is None else limits.data_ptr(),
                0 if limits is None or limits.shape[0] == 1 else 1,
                up.data_ptr(),
                None if bias is None else bias.data_ptr(),
                packed.data_ptr(),
                *addresses(more),
                index.data_ptr(),
                kept,
                kept + 8 * rows * neurons,
                kept + 4 * rows * neurons,
                out.data_ptr(),
                rows,
                neurons,
                width,
                outputs,
                x.stride(0),
                up.stride(0),
                packed.stride(0),
                torch.get_num_threads(),
            )
            return out

        return launch


def _both(parameters: Parameters) -> tuple[Inputs, Inputs]:
    prologue, epilogue = str(parameters["inputs"]), str(parameters["extras"])
    return Inputs("prologue", prologue), Inputs("epilogue", epilogue)
