"""Triton kernel of `tokenpass::sparse_input_gemv`: parts of the list, whole segments of rows."""

from __future__ import annotations

import math
from typing import ClassVar

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.triton.pointwise import MATHEMATICS
from tokenpass.codegen.triton.sparse import (
    HEAD,
    IMPORTS,
    LISTED,
    constants_of,
    product_text,
)
from tokenpass.codegen.triton.sparse_plans import (
    product_constants,
    product_plans,
    product_sizes,
)
from tokenpass.codegen.triton.template import AheadOfTime, TritonTemplate
from tokenpass.codegen.triton.texts import (
    Inputs,
    beyond,
    canonical,
    described,
    kind_of,
    rows_at_once,
)
from tokenpass.edits import Rejection

LAUNCH = """

def launch(index, kept, count, weight, inputs, epilogue, density=1.0):
    return launch_product(index.contiguous(), rows_of(kept), count, weight, inputs)
"""


def matrix_of(shape: tuple[int | None, ...]) -> tuple[int | None, int | None]:
    """(outputs, entries) of a weight's shape, in blocks or not."""
    *blocks, outputs, size = shape
    known = [one for one in (*blocks, size) if one is not None]
    return outputs, math.prod(known) if len(known) == len(blocks) + 1 else None


class TritonSparseInputGemv(TritonTemplate):
    """Bound by the weights of listed entries: a program reads 512 bytes of each row of W^T.

    Programs share columns and parts of the list; a second launch adds the parts in their order.
    """

    name: ClassVar[str] = "triton_sparse_input_gemv"
    operator: ClassVar[str] = "sparse_input_gemv"

    def supports(self, problem: Problem) -> Rejection | None:
        return beyond(self.name, problem, problem.tensor(1))

    def parameters(self, problem: Problem) -> Parameters:
        weight, rows = problem.tensor(3), rows_at_once(problem.tensor(1))
        stored = kind_of(self.name, weight)
        outputs, entries = (None, None) if weight is None else matrix_of(weight.shape)
        return {
            "in_blocks": weight is not None and len(weight.shape) == 3,
            "stored": stored,
            "rows": rows,
            "inputs": described(problem.tensors(4)),
            "epilogue": canonical(problem.text(5)),
            **product_sizes(stored, rows, entries, outputs),
        }

    def render(self, parameters: Parameters) -> str:
        inputs = Inputs("epilogue", str(parameters["inputs"]))
        constants = {"ROWS": parameters["rows"], **product_constants(parameters)}
        return (
            HEAD.substitute(
                about="y = epilogue(sum over the list of kept[:, j] packed[index[j]]).",
                imports="\n".join((IMPORTS["PACKED"], IMPORTS["lines, rows_of"])),
                constants=constants_of(constants),
                mathematics=MATHEMATICS,
            )
            + f"\n\n{inputs.function(str(parameters['epilogue']))}\n\n{LISTED}\n\n"
            + product_text(parameters, inputs.parameters)
            + LAUNCH
        )

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        return product_plans(parameters, Inputs("epilogue", str(parameters["inputs"])))
