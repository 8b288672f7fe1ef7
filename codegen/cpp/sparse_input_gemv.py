"""C++ kernel of `tokenpass::sparse_input_gemv`: eight active rows of the weight per pass."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse import CHECK_LIST, SCRATCH, combine
from tokenpass.codegen.cpp.sparse_template import (
    EXPORT,
    PACKED_KINDS,
    SparseTemplate,
    block_of,
    packed_parameters,
    require_list,
    stored,
    with_packed,
)
from tokenpass.codegen.cpp.template import POINTER, SIZE
from tokenpass.codegen.cpp.texts import Inputs, addresses, canonical, described, rows_of
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.ops.sparse_input_gemv import sizes_of

SOURCE = Template("""\
$export sparse_input_gemv(
    const int32_t *index, const float *kept, const int32_t *count,
    $packed
    $declarations
    $stored *out, int64_t rows, int64_t entries, int64_t outputs, int64_t kept_row,
    int64_t threads) {
    int status = check_list(index, *count, entries);
    if (status) return status;
    if (is_changed(weight, known, step, probes)) return CHANGED;
    float *sums = (float *)scratch(MOST_SUMS * sizeof(float));
    if (!sums) return NO_MEMORY;
    $given
    combine(packed, packed_row, index, kept, kept_row, *count, e, out, rows, outputs, sums,
            threads);
    return 0;
}
""")


class CppSparseInputGemv(SparseTemplate):
    """A tile of y stays in the first-level cache while the list's rows of the weight pass by.

    Eight rows per pass, so that y is loaded and stored once for eight; the heads of the next eight
    are fetched meanwhile, for no hardware prefetcher knows where they are.
    """

    name: ClassVar[str] = "cpp_sparse_input_gemv"
    operator: ClassVar[str] = "sparse_input_gemv"

    def details(self, problem: Problem) -> Parameters:
        return {
            "stored": stored(self.name, problem.tensor(3)),
            "rows": block_of(problem.tensor(1)),
            "inputs": described(problem.tensors(4)),
            "epilogue": canonical(problem.text(5)),
        }

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        inputs = Inputs("epilogue", str(parameters["inputs"]))
        return (*(POINTER,) * 3, *PACKED_KINDS, *inputs.argument_kinds, POINTER, *(SIZE,) * 5)

    def render(self, parameters: Parameters) -> str:
        inputs = Inputs("epilogue", str(parameters["inputs"]))
        return (
            prelude(str(parameters["isa"]))
            + mathematics()
            + inputs.function(str(parameters["epilogue"]))
            + SCRATCH
            + combine(str(parameters["isa"]), int(parameters["rows"]))
            + CHECK_LIST
            + SOURCE.substitute(
                export=EXPORT,
                stored=parameters["stored"],
                packed=packed_parameters(str(parameters["stored"])),
                declarations=inputs.declarations,
                given=inputs.given,
            )
        )

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(
            index: Tensor,
            kept: Tensor,
            count: Tensor,
            weight: Tensor,
            inputs: list[Tensor],
            epilogue: str,
            density: float = 1.0,
        ) -> Tensor:
            rows, (outputs, entries) = kept.shape[0], sizes_of(weight)
            index, kept = index.contiguous(), rows_of(kept)
            lines = list(map(rows_of, inputs))
            out = torch.empty((rows, outputs), dtype=weight.dtype)
            first = (index.data_ptr(), kept.data_ptr(), count.data_ptr())
            last = (
                *addresses(lines),
                out.data_ptr(),
                rows,
                entries,
                outputs,
                kept.stride(0),
                torch.get_num_threads(),
            )
            status = with_packed(lambda packed: function(*first, *packed, *last), weight)
            if status:
                require_list(self.operator, status, int(count), int(entries))
            return out

        return launch
