"""Run with TRITON_INTERPRET=1: Triton templates against their operators' references, one dtype.

Usage: interpret.py DTYPE [PART_OF_A_NAME]. A process of its own, because the mode is fixed when
triton is imported and an unmasked load ends the process.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

import torch

from tests.codegen.parity import OPERATOR, SIZES, assert_agree, check_exact, check_grid
from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of
from tokenpass.codegen.packed import Packed

SPANS = SIZES | {"tokens": (0, 1, 2, 7, 80)}
"""More than a block of 64, and no more than that: each step of a kernel is a Python call."""

MOST = {torch.float32: 30}
"""Cases of an operator whose kernel has a statement for each row of a weight that it reads."""

MOST_ELSE = 12
"""The same of the other dtypes, in which nothing but what is loaded and stored differs."""

PRODUCTS = ("bipartite_match", "attention_column_sums")
"""Operators whose kernels multiply as stored."""


def main(dtype, part=""):
    count = 0
    for template in TEMPLATES:
        if template.target == "triton" and part in template.name:
            operator = OPERATOR[template.operator]
            most = MOST.get(dtype, MOST_ELSE) if operator.gradient == "refused" else None
            count += check_grid(launch(template), operator, dtype, most, spans=SPANS)
            count += check_exact(launch(template), operator, dtype)
    for name in ("sparse_input_gemv", "sparse_linear", "glu_neuron"):
        if part in f"triton_{name}":
            check_written_unseen(name, dtype)
    print(f"{count} cases")


def check_written_unseen(name, dtype):
    """A kernel finds by itself that a weight is not what its copy was made from."""
    template = next(t for t in TEMPLATES if t.name == f"triton_{name}")
    sizes = {"rows": 2, "entries": 40, "outputs": 33, "width": 20}
    operator = OPERATOR[name]
    sizes = {size: sizes[size] for size in operator.sizes}
    arguments = operator.example(torch.Generator().manual_seed(7), dtype, **sizes)
    run, weight = launch(template), arguments[6 if name == "glu_neuron" else 3]
    before = run(*arguments)
    weight.data.mul_(-3)
    with patch.object(Packed, "fits", return_value=True):
        results = run(*arguments)
    assert not torch.equal(results, before)
    assert_agree(operator, arguments, results, operator.reference(*arguments))


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
