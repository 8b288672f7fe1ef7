"""C++ kernel of `tokenpass::glu_neuron`: list, rows of the up weight, rows of the down weight."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.dots import dots
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse import SCRATCH, combine, compact
from tokenpass.codegen.cpp.sparse_template import (
    EXPORT,
    PACKED_KINDS,
    SparseTemplate,
    block_of,
    packed_parameters,
    require_memory,
    stored,
    with_packed,
)
from tokenpass.codegen.cpp.template import POINTER, SIZE
from tokenpass.codegen.cpp.texts import Inputs, addresses, canonical, described, rows_of
from tokenpass.codegen.cpp.vectors import prelude

SOURCE = Template("""\
$export glu_neuron(
    const $x_stored *x, $declarations
    const float *threshold, int64_t threshold_step, const $up_stored *up,
    const $bias_stored *up_bias, $packed
    $more_declarations
    $stored *out, int64_t rows, int64_t neurons, int64_t width, int64_t outputs, int64_t x_row,
    int64_t up_row, int64_t threads) {
    if (is_changed(weight, known, step, probes)) return CHANGED;
    int64_t lists = rows * neurons + 16;
    float *sums = (float *)scratch(
        (MOST_SUMS + 2 * lists + rows * width + neurons) * sizeof(float));
    if (!sums) return NO_MEMORY;
    float *kept = sums + MOST_SUMS, *h = kept + lists, *wide = h + lists;
    int32_t *index = (int32_t *)(wide + rows * width);
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
    combine(packed, packed_row, index, kept, neurons, active, e, out, rows, outputs,
            sums, threads);
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
            *(POINTER, SIZE, POINTER, POINTER),
            *PACKED_KINDS,
            *extras.argument_kinds,
            POINTER,
            *(SIZE,) * 7,
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
            + SCRATCH
            + dots(isa, rows)
            + combine(isa, rows)
            + SOURCE.substitute(
                {name: parameters[name] for name in stored_as},
                export=EXPORT,
                packed=packed_parameters(str(parameters["stored"])),
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
            x, up = rows_of(x), rows_of(up)
            lines, more = list(map(rows_of, inputs)), list(map(rows_of, extras))
            limits = None if threshold is None else threshold.contiguous()
            bias = None if up_bias is None else up_bias.contiguous()
            out = torch.empty((rows, outputs), dtype=down.dtype)
            first = (
                x.data_ptr(),
                *addresses(lines),
                None if limits is None else limits.data_ptr(),
                0 if limits is None or limits.shape[0] == 1 else 1,
                up.data_ptr(),
                None if bias is None else bias.data_ptr(),
            )
            last = (
                *addresses(more),
                out.data_ptr(),
                rows,
                neurons,
                width,
                outputs,
                x.stride(0),
                up.stride(0),
                torch.get_num_threads(),
            )
            status = with_packed(lambda packed: function(*first, *packed, *last), down)
            require_memory(self.operator, status)
            return out

        return launch


def _both(parameters: Parameters) -> tuple[Inputs, Inputs]:
    prologue, epilogue = str(parameters["inputs"]), str(parameters["extras"])
    return Inputs("prologue", prologue), Inputs("epilogue", epilogue)
