"""The contract of every template in `TEMPLATES`."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import Argument, Problem, problem_of
from tokenpass.codegen.cache import source_of
from tokenpass.codegen.dispatch import Dispatcher
from tokenpass.ops import OPERATORS

ROOT = Path(__file__).parents[2]
OPERATOR = {operator.name: operator for operator in OPERATORS}

every_template = pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

SHARED_BYTES_PER_BLOCK = {80: 163 * 1024, 90: 227 * 1024}
"""CUDA C++ Programming Guide, table of technical specifications per compute capability."""

REGISTERS_PER_BLOCK = 65536


def run_child(tmp_path, script, *arguments, **variables):
    environment = os.environ | variables
    environment |= {
        "PYTHONPATH": str(ROOT),
        "TOKENPASS_CACHE_DIR": str(tmp_path / "kernels"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }
    path = Path(__file__).parent / "children" / script
    result = subprocess.run(
        [sys.executable, str(path), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stderr}"
    return result.stdout


def example(template, dtype=torch.float32, seed=0):
    operator = OPERATOR[template.operator]
    sizes = dict.fromkeys(operator.sizes, 8)
    return operator.example(torch.Generator().manual_seed(seed), dtype, **sizes)


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_interpreted_kernels_agree_with_references(tmp_path, dtype):
    output = run_child(tmp_path, "interpret.py", dtype, TRITON_INTERPRET="1")
    assert output.endswith("cases\n")


@needs_triton
def test_kernels_compile_ahead_of_time_within_their_means(tmp_path):
    usage = json.loads(run_child(tmp_path, "compile_ahead.py", TRITON_INTERPRET="0"))
    assert {entry["arch"] for entry in usage} == {80, 90}
    for entry in usage:
        assert entry["stack"] == 0, f"spills registers: {entry}"
        assert entry["registers"] < 255, f"at the limit of a thread: {entry}"
        assert entry["registers"] * entry["threads"] <= REGISTERS_PER_BLOCK, entry
        assert entry["shared"] <= SHARED_BYTES_PER_BLOCK[entry["arch"]], entry
        assert entry["tensor_cores"] == (entry["dtype"] != "torch.float32"), entry


@every_template
def test_source_is_a_function_of_its_parameters(template):
    problem = problem_of(template.operator, example(template))
    parameters = template.parameters(problem)
    text = source_of(template, parameters)
    assert text == source_of(template, dict(reversed(parameters.items())))
    assert "$" not in text
    assert max(map(len, text.splitlines())) <= 100
    functions = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert "launch" in functions


@every_template
def test_known_sizes_and_dynamic_sizes_are_accepted(template):
    problem = problem_of(template.operator, example(template))
    cuda = Problem(problem.operator, "cuda", problem.arguments)
    assert template.supports(cuda) is None
    dynamic = tuple(
        Argument(a.dtype, (None,) * len(a.shape)) if isinstance(a, Argument) else a
        for a in cuda.arguments
    )
    assert template.supports(Problem(cuda.operator, "cuda", dynamic)) is None


@pytest.mark.parametrize(
    ("dtype", "shape", "code"),
    [
        (torch.float64, (1, 8, 8), "kernel_dtype"),
        (torch.float32, (65536, 8, 8), "kernel_shape"),
        (torch.float16, (1, 2**26, 64), "kernel_shape"),
    ],
)
def test_bipartite_match_says_why_not(dtype, shape, code):
    template = next(t for t in TEMPLATES if t.name == "triton_bipartite_match")
    problem = Problem("bipartite_match", "cuda", (Argument(dtype, shape), None, None, 1))
    rejection = template.supports(problem)
    assert rejection is not None and rejection.code == code


@pytest.mark.gpu
@needs_triton
@every_template
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(8))
def test_kernel_agrees_with_reference_on_a_gpu(template, dtype, seed):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    operator = OPERATOR[template.operator]
    sizes = dict.fromkeys(operator.sizes, 37 + 16 * seed)
    arguments = operator.example(torch.Generator().manual_seed(seed), dtype, **sizes)
    on_gpu = [x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the reference must not stand in
        results = Dispatcher(operator, (template,))(*on_gpu)
    for got, want in zip(results, operator.reference(*arguments), strict=True):
        if got.dtype.is_floating_point:
            torch.testing.assert_close(got.cpu(), want, rtol=0, atol=2e-6)
        else:
            assert (got.cpu() == want).float().mean() > 0.999
