"""Triton kernel of `tokenpass::sparse_output_gemv`: whole listed rows of the weight."""

from __future__ import annotations

from typing import ClassVar

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.triton.pointwise import MATHEMATICS
from tokenpass.codegen.triton.sparse import (
    DOTS,
    HEAD,
    IMPORTS,
    LISTED,
    PLAIN_RESULT,
    constants_of,
)
from tokenpass.codegen.triton.sparse_plans import (
    DOT_PROGRAMS,
    dots_constants,
    dots_plan,
    dots_sizes,
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

def launch(x, index, count, weight, inputs, epilogue, density=1.0):
    return launch_dots(x, index.contiguous(), None, count, weight, None, inputs)
"""


class TritonSparseOutputGemv(TritonTemplate):
    """Programs walk the list in strides: how long it is only the device knows."""

    name: ClassVar[str] = "triton_sparse_output_gemv"
    operator: ClassVar[str] = "sparse_output_gemv"

    def supports(self, problem: Problem) -> Rejection | None:
        return beyond(self.name, problem, problem.tensor(0))

    def parameters(self, problem: Problem) -> Parameters:
        x, weight = problem.tensor(0), problem.tensor(3)
        rows = rows_at_once(x)
        return {
            "x_stored": kind_of(self.name, x),
            "stored": kind_of(self.name, weight),
            "rows": rows,
            "inputs": described(problem.tensors(4)),
            "epilogue": canonical(problem.text(5)),
            **dots_sizes(
                kind_of(self.name, weight), rows, None if weight is None else weight.shape[1]
            ),
        }

    def render(self, parameters: Parameters) -> str:
        inputs = Inputs("epilogue", str(parameters["inputs"]))
        return (
            HEAD.substitute(
                about="h[:, j] = epilogue(x . weight[index[j]]).",
                imports=IMPORTS["lines, rows_of"],
                constants=constants_of(dots_constants(parameters, bias=False)),
                mathematics=MATHEMATICS,
            )
            + f"\n\n{inputs.function(str(parameters['epilogue']))}\n\n{LISTED}\n\n"
            + DOTS.substitute(
                parameters,
                parameters=inputs.parameters,
                formula="epilogue(x . weight[index[j]])",
                result=PLAIN_RESULT.replace("$parameters", inputs.parameters),
                programs=DOT_PROGRAMS,
            )
            + LAUNCH
        )

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        inputs = Inputs("epilogue", str(parameters["inputs"]))
        return (dots_plan(parameters, inputs, gated=False, bias=None),)
