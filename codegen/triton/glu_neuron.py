"""Triton kernels of `tokenpass::glu_neuron`: list, rows of the up weight, rows of the down one."""

from __future__ import annotations

from typing import ClassVar

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.triton.pointwise import MATHEMATICS
from tokenpass.codegen.triton.sparse import (
    COMPACT,
    DOTS,
    FOUND,
    GATED_RESULT,
    HEAD,
    IMPORTS,
    LISTED,
    constants_of,
    product_text,
)
from tokenpass.codegen.triton.sparse_plans import (
    DOT_PROGRAMS,
    compact_constants,
    compact_plan,
    compact_sizes,
    dots_constants,
    dots_plan,
    dots_sizes,
    product_constants,
    product_plans,
    product_sizes,
)
from tokenpass.codegen.triton.template import AheadOfTime, TritonTemplate
from tokenpass.codegen.triton.texts import (
    NOTHING,
    Inputs,
    beyond,
    canonical,
    described,
    kind_of,
    rows_at_once,
)
from tokenpass.edits import Rejection

LAUNCH = """

def launch(x, inputs, prologue, threshold, up, up_bias, down, extras, epilogue, density=1.0):
    rows, neurons = x.shape[0], down.shape[1]
    index, kept, count = launch_mask_compact(inputs, threshold, rows, neurons)
    bias = None if up_bias is None else up_bias.contiguous()
    h = launch_dots(x, index, kept, count, up, bias, [])
    return launch_product(index, h, count, down, extras)
"""


class TritonGluNeuron(TritonTemplate):
    """Four launches, one list; between them only the list and its values are stored."""

    name: ClassVar[str] = "triton_glu_neuron"
    operator: ClassVar[str] = "glu_neuron"

    def supports(self, problem: Problem) -> Rejection | None:
        return beyond(self.name, problem, problem.tensor(0))

    def parameters(self, problem: Problem) -> Parameters:
        x, up, bias, down = (problem.tensor(at) for at in (0, 4, 5, 6))
        stored, rows = kind_of(self.name, down), rows_at_once(x)
        outputs, neurons = (None, None) if down is None else down.shape
        return {
            "x_stored": kind_of(self.name, x),
            "up_stored": kind_of(self.name, up),
            "bias_stored": NOTHING if bias is None else kind_of(self.name, bias),
            "stored": stored,
            "rows": rows,
            "inputs": described(problem.tensors(1)),
            "prologue": canonical(problem.text(2)),
            "has_threshold": problem.tensor(3) is not None,
            "extras": described(problem.tensors(7)),
            "epilogue": canonical(problem.text(8)),
            **compact_sizes(neurons),
            **dots_sizes(kind_of(self.name, up), rows, None if up is None else up.shape[1]),
            **product_sizes(stored, rows, neurons, outputs),
        }

    def render(self, parameters: Parameters) -> str:
        inputs, extras = _both(parameters)
        bias = parameters["bias_stored"] != NOTHING
        constants = {
            **compact_constants(parameters),
            **dots_constants(parameters, bias=bias),
            **product_constants(parameters),
        }
        return (
            HEAD.substitute(
                about="y = epilogue(sum over the list of g_k (up[k] . x + bias_k) packed[k]).",
                imports="\n".join((IMPORTS["PACKED"], IMPORTS["lines, rows_of"])),
                constants=constants_of(constants),
                mathematics=MATHEMATICS,
            )
            + f"\n\n{inputs.function(str(parameters['prologue']))}"
            + f"\n\n{extras.function(str(parameters['epilogue']))}\n\n{LISTED}\n\n"
            + FOUND.substitute(parameters=inputs.parameters)
            + "\n\n"
            + COMPACT.substitute(parameters, parameters=inputs.parameters)
            + "\n\n"
            + DOTS.substitute(
                parameters,
                parameters="",
                formula="kept[:, j] (x . weight[index[j]] + bias)",
                result=GATED_RESULT,
                programs=DOT_PROGRAMS,
            )
            + "\n\n"
            + product_text(parameters, extras.parameters)
            + LAUNCH
        )

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        inputs, extras = _both(parameters)
        bias = None if parameters["bias_stored"] == NOTHING else str(parameters["bias_stored"])
        up = {**parameters, "stored": parameters["up_stored"]}
        return (
            compact_plan(parameters, inputs),
            dots_plan(up, Inputs("epilogue", NOTHING), gated=True, bias=bias),
            *product_plans(parameters, extras),
        )


def _both(parameters: Parameters) -> tuple[Inputs, Inputs]:
    prologue, epilogue = str(parameters["inputs"]), str(parameters["extras"])
    return Inputs("prologue", prologue), Inputs("epilogue", epilogue)
