"""Triton kernel of `tokenpass::mask_compact`: each block counts the entries before it by itself."""

from __future__ import annotations

from typing import ClassVar

from tokenpass.codegen.base import Argument, Parameters, Problem
from tokenpass.codegen.triton.pointwise import MATHEMATICS
from tokenpass.codegen.triton.sparse import (
    COMPACT,
    FOUND,
    HEAD,
    IMPORTS,
    constants_of,
)
from tokenpass.codegen.triton.sparse_plans import (
    compact_constants,
    compact_plan,
    compact_sizes,
)
from tokenpass.codegen.triton.template import AheadOfTime, TritonTemplate
from tokenpass.codegen.triton.texts import Inputs, beyond, canonical, described
from tokenpass.edits import Rejection

LAUNCH = """

def launch(inputs, prologue, threshold):
    rows, entries = (next((one.shape[at] for one in inputs if one.shape[at] != 1), 1)
                     for at in (0, 1))
    return launch_mask_compact(inputs, threshold, rows, entries)
"""


class TritonMaskCompact(TritonTemplate):
    """One launch: the vector is small, reading it again costs less than waiting for a neighbour."""

    name: ClassVar[str] = "triton_mask_compact"
    operator: ClassVar[str] = "mask_compact"

    def supports(self, problem: Problem) -> Rejection | None:
        return beyond(self.name, problem, tallest(problem.tensors(0)))

    def parameters(self, problem: Problem) -> Parameters:
        return {
            "inputs": described(problem.tensors(0)),
            "prologue": canonical(problem.text(1)),
            "has_threshold": problem.tensor(2) is not None,
            **compact_sizes(widest(problem.tensors(0))),
        }

    def render(self, parameters: Parameters) -> str:
        inputs = Inputs("prologue", str(parameters["inputs"]))
        return (
            HEAD.substitute(
                about="The list of entries above a threshold, and their values.",
                imports=IMPORTS["lines"],
                constants=constants_of(compact_constants(parameters)),
                mathematics=MATHEMATICS,
            )
            + f"\n\n{inputs.function(str(parameters['prologue']))}\n\n"
            + FOUND.substitute(parameters=inputs.parameters)
            + "\n\n"
            + COMPACT.substitute(parameters, parameters=inputs.parameters)
            + LAUNCH
        )

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        return (compact_plan(parameters, Inputs("prologue", str(parameters["inputs"]))),)


def tallest(inputs: tuple[Argument, ...]) -> Argument | None:
    """The input with the most rows."""
    return max(inputs, key=lambda one: one.shape[0] or 0, default=None)


def widest(inputs: tuple[Argument, ...]) -> int | None:
    """Columns of what the inputs give together; None where they are not known."""
    columns = [one.shape[1] for one in inputs]
    if None in columns:
        return None
    return next((size for size in columns if size != 1), 1)
