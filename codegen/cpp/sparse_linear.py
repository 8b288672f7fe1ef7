"""C++ kernel of `tokenpass::sparse_linear`: the list stays in scratch memory, then the product."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse import SCRATCH, combine, compact
from tokenpass.codegen.cpp.sparse_template import (
    EXPORT,
    PACKED_KINDS,
    SparseTemplate,
    block,
    packed_parameters,
    require_memory,
    stored,
    with_packed,
)
from tokenpass.codegen.cpp.template import POINTER, SIZE
from tokenpass.codegen.cpp.texts import Inputs, addresses, canonical, described, most_rows, rows_of
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.ops.sparse_list import common_size

SOURCE = Template("""\
$export sparse_linear(
    $declarations
    const float *threshold, int64_t threshold_step,
    $packed
    $more_declarations
    $stored *out, int64_t rows, int64_t entries, int64_t outputs, int64_t threads) {
    if (is_changed(weight, known, step, probes)) return CHANGED;
    int64_t lists = rows * entries + 16;
    float *sums = (float *)scratch((MOST_SUMS + lists + entries) * sizeof(float));
    if (!sums) return NO_MEMORY;
    float *kept = sums + MOST_SUMS;
    int32_t *index = (int32_t *)(kept + lists);
    $given
    $more_given
    int64_t active = compact(p, threshold, threshold_step, index, kept, rows, entries);
    combine(packed, packed_row, index, kept, entries, active, e, out, rows, outputs, sums,
            threads);
    return 0;
}
""")


class CppSparseLinear(SparseTemplate):
    """One launch: whatever a call touches has left the caches when the next one comes."""

    name: ClassVar[str] = "cpp_sparse_linear"
    operator: ClassVar[str] = "sparse_linear"

    def details(self, problem: Problem) -> Parameters:
        return {
            "inputs": described(problem.tensors(0)),
            "prologue": canonical(problem.text(1)),
            "has_threshold": problem.tensor(2) is not None,
            "stored": stored(self.name, problem.tensor(3)),
            "rows": block(most_rows(problem.tensors(0))),
            "extras": described(problem.tensors(4)),
            "epilogue": canonical(problem.text(5)),
        }

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        inputs, extras = _both(parameters)
        return (
            *inputs.argument_kinds,
            *(POINTER, SIZE),
            *PACKED_KINDS,
            *extras.argument_kinds,
            POINTER,
            *(SIZE,) * 4,
        )

    def render(self, parameters: Parameters) -> str:
        inputs, extras = _both(parameters)
        return (
            prelude(str(parameters["isa"]))
            + mathematics()
            + inputs.function(str(parameters["prologue"]))
            + extras.function(str(parameters["epilogue"]))
            + compact(bool(parameters["has_threshold"]))
            + SCRATCH
            + combine(str(parameters["isa"]), int(parameters["rows"]))
            + SOURCE.substitute(
                export=EXPORT,
                stored=parameters["stored"],
                packed=packed_parameters(str(parameters["stored"])),
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
            threshold: Tensor | None,
            weight: Tensor,
            extras: list[Tensor],
            epilogue: str,
            density: float = 1.0,
        ) -> Tensor:
            rows, entries = common_size(self.operator, inputs)
            outputs = weight.shape[0]
            lines, more = list(map(rows_of, inputs)), list(map(rows_of, extras))
            limits = None if threshold is None else threshold.contiguous()
            out = torch.empty((rows, outputs), dtype=weight.dtype)
            first = (
                *addresses(lines),
                None if limits is None else limits.data_ptr(),
                0 if limits is None or limits.shape[0] == 1 else 1,
            )
            last = (
                *addresses(more),
                out.data_ptr(),
                rows,
                entries,
                outputs,
                torch.get_num_threads(),
            )
            status = with_packed(lambda packed: function(*first, *packed, *last), weight)
            require_memory(self.operator, status)
            return out

        return launch


def _both(parameters: Parameters) -> tuple[Inputs, Inputs]:
    prologue, epilogue = str(parameters["inputs"]), str(parameters["extras"])
    return Inputs("prologue", prologue), Inputs("epilogue", epilogue)
