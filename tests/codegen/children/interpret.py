"""Run with TRITON_INTERPRET=1: Triton templates against their operators' references, one dtype.

Usage: interpret.py DTYPE [PART_OF_A_NAME]. A process of its own, because the mode is fixed when triton is imported
and an unmasked load ends the process.
"""

from __future__ import annotations

import sys

import torch

from tests.codegen.parity import OPERATOR, SIZES, check_exact, check_grid
from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of

SPANS = SIZES | {"tokens": (0, 1, 2, 7, 80)}
"""More than a block of 64, and no more than that: each step of a kernel is a Python call."""

PRODUCTS = ("bipartite_match", "attention_column_sums")
"""Operators whose kernels multiply as stored."""


def main(dtype, part=""):
    count = 0
    for template in TEMPLATES:
        if template.target == "triton" and part in template.name:
            operator = OPERATOR[template.operator]
            count += check_grid(launch(template), operator, dtype, spans=SPANS)
            count += check_exact(launch(template), operator, dtype)
    print(f"{count} cases")


def launch(template):
    def run(*arguments):
        parameters = dict(template.parameters(problem_of(template.operator, arguments)))
        if template.operator in PRODUCTS and arguments[0].dtype == torch.bfloat16:
            # The interpreter computes with bfloat16's raw bits (triton#4972): widen after the load.
            parameters["dot_dtype"] = "float32"
        return template.launcher(parameters)(*arguments)

    return run


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]), *sys.argv[2:])
