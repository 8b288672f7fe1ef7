"""Run with TRITON_INTERPRET=1: every Triton template against its operator's reference, one dtype.

Usage: interpret.py DTYPE. A process of its own, because the mode is fixed when triton is imported
and an unmasked load ends the process.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import torch

from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of
from tokenpass.codegen.cache import load
from tokenpass.ops import OPERATORS

SIZES = {
    "batch": (1, 3),
    "tokens": (0, 1, 2, 7, 64, 131),
    "width": (1, 40, 65),
}


def main(dtype):
    operators = {operator.name: operator for operator in OPERATORS}
    count = 0
    for template in TEMPLATES:
        if template.target == "triton":
            count += check_grid(template, operators[template.operator], dtype)
            count += check_exact(template, oracle_of(template.operator), dtype)
    print(f"{count} cases")


def check_grid(template, operator, dtype):
    names = list(operator.sizes)
    grid = list(itertools.product(*(SIZES[name] for name in names)))
    for seed, sizes in enumerate(grid):
        generator = torch.Generator().manual_seed(seed)
        arguments = operator.example(generator, dtype, **dict(zip(names, sizes, strict=True)))
        results = launch(template, arguments)
        if max(sizes) <= 40:  # the oracle is slow; larger sizes are compared with the reference
            oracle_of(operator.name).assert_correct(arguments, results)
        for got, want in zip(results, operator.reference(*arguments), strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            if got.dtype.is_floating_point:
                torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    return len(grid)


def check_exact(template, oracle, dtype):
    cases = list(oracle.exact_cases())
    for arguments, expected in cases:
        keys, *others = arguments
        # A view with other strides: every second channel of a wider tensor.
        strided = torch.stack([keys, keys], dim=-1)[..., 0].to(dtype)
        for first in (keys.to(dtype), strided):
            results = launch(template, (first, *others))
            for got, want in zip(results, expected, strict=True):
                assert got.tolist() == want, (got, want)
    return len(cases)


def launch(template, arguments):
    problem = problem_of(template.operator, arguments)
    parameters = dict(template.parameters(problem))
    if arguments[0].dtype == torch.bfloat16:
        # The interpreter computes with bfloat16's raw bits (triton#4972): widen after the load.
        parameters["dot_dtype"] = "float32"
    return load(template, parameters).launch(*arguments)


def oracle_of(name):
    path = Path(__file__).parents[2] / "ops" / "oracles" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
