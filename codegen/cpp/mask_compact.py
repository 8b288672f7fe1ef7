"""C++ kernel of `tokenpass::mask_compact`: one pass, values moved to the front where they stand."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.pointwise import mathematics
from tokenpass.codegen.cpp.sparse import compact
from tokenpass.codegen.cpp.sparse_template import EXPORT, SparseTemplate
from tokenpass.codegen.cpp.template import POINTER, SIZE
from tokenpass.codegen.cpp.texts import Inputs, addresses, canonical, described, rows_of
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.ops.sparse_list import common_size

SOURCE = Template("""\
$export mask_compact(
    $declarations
    const float *threshold, int64_t threshold_step, int32_t *index, float *kept, int32_t *count,
    int64_t rows, int64_t entries) {
    $given
    *count = compact(p, threshold, threshold_step, index, kept, rows, entries);
    return 0;
}
""")


class CppMaskCompact(SparseTemplate):
    """One thread: a vector of activations is small beside the weights that it saves."""

    name: ClassVar[str] = "cpp_mask_compact"
    operator: ClassVar[str] = "mask_compact"

    def details(self, problem: Problem) -> Parameters:
        return {
            "inputs": described(problem.tensors(0)),
            "prologue": canonical(problem.text(1)),
            "has_threshold": problem.tensor(2) is not None,
        }

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        inputs = Inputs("prologue", str(parameters["inputs"]))
        return (*inputs.argument_kinds, POINTER, SIZE, POINTER, POINTER, POINTER, SIZE, SIZE)

    def render(self, parameters: Parameters) -> str:
        inputs = Inputs("prologue", str(parameters["inputs"]))
        return (
            prelude(str(parameters["isa"]))
            + mathematics()
            + inputs.function(str(parameters["prologue"]))
            + compact(bool(parameters["has_threshold"]))
            + SOURCE.substitute(export=EXPORT, declarations=inputs.declarations, given=inputs.given)
        )

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        def launch(
            inputs: list[Tensor], prologue: str, threshold: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor]:
            rows, entries = common_size(self.operator, inputs)
            lines = list(map(rows_of, inputs))
            limits = None if threshold is None else threshold.contiguous()
            index = torch.zeros(entries, dtype=torch.int32)
            kept = torch.zeros((rows, entries), dtype=torch.float32)
            count = torch.empty(1, dtype=torch.int32)
            function(
                *addresses(lines),
                None if limits is None else limits.data_ptr(),
                0 if limits is None or limits.shape[0] == 1 else 1,
                index.data_ptr(),
                kept.data_ptr(),
                count.data_ptr(),
                rows,
                entries,
            )
            return index, kept, count

        return launch
