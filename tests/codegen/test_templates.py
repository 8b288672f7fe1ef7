"""The contract of every template in `TEMPLATES`."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.codegen.parity import (
    OPERATOR,
    check_exact,
    check_grid,
    oracle_of,
    visible,
)
from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import Argument, Problem, problem_of
from tokenpass.codegen.cache import source_of
from tokenpass.codegen.cpp.isa import available
from tokenpass.codegen.dispatch import Dispatcher

ROOT = Path(__file__).parents[2]

every_template = pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
CPP = [(t, isa) for t in TEMPLATES if t.target == "cpp" for isa in available(t.isas)]
every_cpp = pytest.mark.parametrize(
    ("template", "isa"), CPP, ids=[f"{template.name}-{isa}" for template, isa in CPP]
)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

SHARED_BYTES_PER_BLOCK = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
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
        timeout=600,
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
    assert {entry["arch"] for entry in usage} == {80, 90, 100}
    assert {entry["kernel"] for entry in usage} == {
        template.name for template in TEMPLATES if template.target == "triton"
    }
    for entry in usage:
        assert entry["stack"] == 0, f"spills registers: {entry}"
        assert entry["registers"] < 255, f"at the limit of a thread: {entry}"
        assert entry["registers"] * entry["threads"] <= REGISTERS_PER_BLOCK, entry
        assert entry["shared"] <= SHARED_BYTES_PER_BLOCK[entry["arch"]], entry
        assert entry["tensor_cores"] == entry["wants_tensor_cores"], entry


def launcher_for(template, isa):
    """Runs calls with the kernel for one instruction set; compiled once for each source."""
    built = {}

    def run(*arguments):
        problem = problem_of(template.operator, arguments)
        assert template.supports(problem) is None
        parameters = {**template.parameters(problem), "isa": isa}
        key = tuple(parameters.values())
        if key not in built:
            built[key] = template.launcher(parameters)
        return built[key](*arguments)

    return run


def each_kernel():
    """Every template, instruction set and dtype; in each run the best set, and float32 for all."""
    for template, isa in CPP:
        for dtype in OPERATOR[template.operator].dtypes:
            quick = isa == available(template.isas)[0] or dtype == torch.float32
            yield pytest.param(
                template,
                isa,
                dtype,
                id=f"{template.name}-{isa}-{dtype}",
                marks=() if quick else pytest.mark.slow,
            )


@pytest.mark.parametrize(("template", "isa", "dtype"), list(each_kernel()))
def test_cpp_kernels_agree_with_references(template, isa, dtype):
    operator, launch = OPERATOR[template.operator], launcher_for(template, isa)
    refused = template.supports(problem_of(template.operator, example(template, dtype)))
    if refused is not None:  # the reference runs in double precision
        assert refused.code == "kernel_double" and dtype == torch.float64
        return
    first = isa == available(template.isas)[0] and dtype == torch.float32
    most = (9 if first else 5) if "str " in operator.schema else None  # each text is compiled
    assert check_grid(launch, operator, dtype, most) > 6
    assert check_exact(launch, operator, dtype) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "template", [t for t in TEMPLATES if t.target == "cpp"], ids=lambda t: t.name
)
def test_cpp_kernels_agree_with_references_at_all_sizes(template):
    operator = OPERATOR[template.operator]
    launch = launcher_for(template, available(template.isas)[0])
    for dtype in operator.dtypes:
        assert check_grid(launch, operator, dtype) > 10


@every_cpp
def test_cpp_kernels_give_the_same_bits_again(template, isa):
    """Also with another thread count, where the template says so."""
    operator, launch = OPERATOR[template.operator], launcher_for(template, isa)
    sizes = dict.fromkeys(operator.sizes, 37)
    arguments = operator.example(torch.Generator().manual_seed(3), torch.float32, **sizes)
    oracle = oracle_of(operator.name)
    first = visible(oracle, arguments, launch(*arguments))
    before = torch.get_num_threads()
    try:
        for threads in (before, 1, 2, 3) if template.any_threads else (before,):
            torch.set_num_threads(threads)
            again = visible(oracle, arguments, launch(*arguments))
            assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(before)


@every_template
def test_source_is_a_function_of_its_parameters(template):
    problem = problem_of(template.operator, example(template))
    parameters = template.parameters(problem)
    text = source_of(template, parameters)
    assert text == source_of(template, dict(reversed(parameters.items())))
    assert "$" not in text
    assert max(map(len, text.splitlines())) <= 100
    if template.target == "triton":
        parsed = ast.parse(text).body
        assert "launch" in [node.name for node in parsed if isinstance(node, ast.FunctionDef)]
    else:
        assert text.count('extern "C"') == text.count(f" int {template.operator}(") == 1


@every_template
def test_known_sizes_and_dynamic_sizes_are_accepted(template):
    problem = problem_of(template.operator, example(template))
    there = replace(problem, device=template.device)
    assert template.supports(there) is None
    dynamic = replace(there, arguments=tuple(map(without_sizes, there.arguments)))
    assert template.supports(dynamic) is None


def without_sizes(described):
    if isinstance(described, tuple):
        return tuple(map(without_sizes, described))
    if isinstance(described, Argument):
        return Argument(described.dtype, (None,) * len(described.shape))
    return described


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "code"),
    [
        ("triton_bipartite_match", torch.float64, (1, 8, 8), "kernel_dtype"),
        ("triton_bipartite_match", torch.float32, (65536, 8, 8), "kernel_shape"),
        ("triton_bipartite_match", torch.float16, (1, 2**26, 64), "kernel_shape"),
        ("cpp_bipartite_match", torch.float8_e5m2, (1, 8, 8), "kernel_dtype"),
        ("cpp_bipartite_match", torch.float32, (1, 2**31, 8), "kernel_shape"),
    ],
)
def test_bipartite_match_says_why_not(name, dtype, shape, code):
    template = next(t for t in TEMPLATES if t.name == name)
    problem = Problem("bipartite_match", template.device, (Argument(dtype, shape), None, None, 1))
    rejection = template.supports(problem)
    assert rejection is not None and rejection.code == code


TOKENS = (torch.float32, (2, 8, 8))
PLACES = (torch.int64, (2, 8))
HEADS = (torch.float16, (1, 4, 8, 16))


@pytest.mark.parametrize(
    ("name", "code", "arguments"),
    [
        ("triton_gather_tokens", "kernel_double", ((torch.float64, (2, 8, 8)), PLACES)),
        ("triton_gather_tokens", "kernel_dtype", ((torch.float8_e5m2, (2, 8, 8)), PLACES)),
        ("triton_gather_tokens", "kernel_shape", ((torch.float16, (1, 2**26, 64)), PLACES)),
        ("triton_merge_tokens", "kernel_double", (TOKENS, PLACES, (torch.float64, (2, 8)), 4)),
        (
            "triton_merge_tokens",
            "kernel_shape",
            ((torch.float16, (1, 1, 2**27)), PLACES, TOKENS, 1),
        ),
        ("cpp_merge_tokens", "kernel_double", ((torch.float64, (2, 8, 8)), PLACES, PLACES, 4)),
        ("cpp_merge_tokens", "kernel_shape", ((torch.float32, (1, 2**31, 8)), PLACES, PLACES, 4)),
        ("triton_attention_row", "kernel_dtype", (HEADS, HEADS, (torch.float64, (1, 1, 8)), 1.0)),
        (
            "triton_attention_column_sums",
            "kernel_shape",
            (
                (torch.float16, (2**12, 32, 1, 8)),
                (torch.float16, (2**12, 32, 1, 8)),
                None,
                False,
                1.0,
            ),
        ),
        (
            "cpp_attention_row",
            "kernel_dtype",
            (HEADS, (torch.float8_e5m2, (1, 4, 8, 16)), None, 1.0),
        ),
        ("cpp_farthest_point", "kernel_double", ((torch.float64, (2, 8, 8)), 1, PLACES, None)),
    ],
)
def test_kernels_of_tokens_say_why_not(name, code, arguments):
    template = next(t for t in TEMPLATES if t.name == name)
    described = tuple(Argument(*x) if isinstance(x, tuple) else x for x in arguments)
    rejection = template.supports(Problem(template.operator, template.device, described))
    assert rejection is not None and rejection.code == code


def dispatcher(name):
    return Dispatcher(OPERATOR[name], [t for t in TEMPLATES if t.operator == name])


def test_float64_gets_the_reference_without_a_warning():
    arguments = OPERATOR["merge_tokens"].example(
        torch.Generator().manual_seed(0), torch.float64, batch=2, tokens=9, width=5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = dispatcher("merge_tokens")(*arguments)
    assert merged.dtype == torch.float64
    assert torch.equal(merged, OPERATOR["merge_tokens"].reference(*arguments))


@pytest.mark.parametrize("place", [-1, 3])
def test_cpp_kernels_raise_where_a_place_is_out_of_range(place):
    """And stay in use: the call was wrong, not the kernel."""
    x, index = torch.ones(2, 3, 1), torch.tensor([[0, 1, 2], [0, place, 1]])
    calls = {
        "gather_tokens": (x, index),
        "merge_tokens": (x, index, torch.ones(2, 3), 3),
        "farthest_point": (x, 2, index[:, 1], None),
    }
    for name, arguments in calls.items():
        call = dispatcher(name)
        for _ in range(2):
            with pytest.raises(IndexError, match=r"must lie in 0 \.\. 2"):
                call(*arguments)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [4, 33])
def test_cpp_keeps_nan_in_its_row_and_head(causal, width):
    query, keys = torch.randn(1, 4, 3, width), torch.randn(1, 2, 30, width)
    query[0, 1, 1, 2] = float("nan")
    row = dispatcher("attention_row")(query[:, :, 1:2], keys, None, 1.0)
    sums = dispatcher("attention_column_sums")(query, keys, None, causal, 1.0)
    seen = 2 if causal else 30
    assert row[0, 1].isnan().all() and sums[0, 1, :seen].isnan().all()
    for other in (0, 2, 3):
        assert not row[0, other].isnan().any() and not sums[0, other].isnan().any()


def test_cpp_weights_of_a_softmax_are_those_of_torch():
    """Scores from equal to far apart: weights down to the smallest that are not zero."""
    scores = torch.cat([torch.linspace(-100, 0, 4001), torch.tensor([-torch.inf, -1e30])])
    one = torch.ones(1, 1, 1, 1)
    row = dispatcher("attention_row")(one, scores[None, None, :, None].clamp_min(-200), None, 1.0)
    want = torch.softmax(scores.double().clamp_min(-200), -1)
    large = want > 1e-38
    torch.testing.assert_close(row[0, 0].double()[large], want[large], rtol=2e-6, atol=0)
    assert (row[0, 0][~large] < 1e-37).all()
