"""C++ kernel of `tokenpass::sparse_input_gemv`: eight active rows of the weight per pass."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Argument, Parameters, Problem
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse import CHECK_LIST, combine
from tokenpass.codegen.cpp.sparse_template import EXPORT, SparseTemplate, require_list
from tokenpass.codegen.cpp.template import POINTER, SIZE, STORED
from tokenpass.codegen.cpp.texts import Inputs, addresses, canonical, described, rows_of
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.codegen.packed import PACKED
from tokenpass.errors import InternalError
from tokenpass.ops.sparse_input_gemv import sizes_of

MOST_ROWS = 8
"""Rows of y that one pass over the weight serves."""

SOURCE = Template("""\
$export sparse_input_gemv(
    const int32_t *index, const float *kept, const int32_t *count, const $stored *packed,
    $declarations
    $stored *out, int64_t rows, int64_t entries, int64_t outputs, int64_t kept_row,
    int64_t packed_row, int64_t threads) {
    int status = check_list(index, *count, entries);
    if (status) return status;
    $given
    combine(packed, packed_row, index, kept, kept_row, *count, e, out, rows, outputs,
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
        return (*(POINTER,) * 4, *inputs.argument_kinds, POINTER, *(SIZE,) * 6)

    def render(self, parameters: Parameters) -> str:
        inputs = Inputs("epilogue", str(parameters["inputs"]))
        return (
            prelude(str(parameters["isa"]))
            + mathematics()
            + inputs.function(str(parameters["epilogue"]))
            + combine(int(parameters["rows"]))
            + CHECK_LIST
            + SOURCE.substitute(
                export=EXPORT,
                stored=parameters["stored"],
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
            packed = PACKED.transposed(weight)
            index, kept = index.contiguous(), rows_of(kept)
            lines = list(map(rows_of, inputs))
            out = torch.empty((rows, outputs), dtype=packed.dtype)
            status = function(
                index.data_ptr(),
                kept.data_ptr(),
                count.data_ptr(),
                packed.data_ptr(),
                *addresses(lines),
                out.data_ptr(),
                rows,
                entries,
                outputs,
                kept.stride(0),
                packed.stride(0),
                torch.get_num_threads(),
            )
            if status:
                require_list(self.operator, status, int(count), int(entries))
            return out

        return launch


def stored(name: str, argument: Argument | None) -> str:
    """How a tensor that every call has is stored."""
    if argument is None:
        raise InternalError(f"{name}: a problem without a tensor that every call has")
    return STORED[argument.dtype]


def block_of(argument: Argument | None) -> int:
    """Rows of one pass for a tensor of [rows, ...]."""
    rows = argument.shape[0] if argument is not None else None
    return MOST_ROWS if rows is None else max(1, min(rows, MOST_ROWS))
