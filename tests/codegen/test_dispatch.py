"""A call gets its kernel or, with one warning, the reference; selection says why."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of
from tokenpass.codegen.dispatch import Dispatcher, install_kernels
from tokenpass.codegen.select import choose
from tokenpass.errors import FallbackWarning
from tokenpass.ops import bipartite_match

KEYS = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
OPERATOR = bipartite_match.OPERATOR


def test_choice_is_the_first_that_accepts(plain_template):
    problem = problem_of("bipartite_match", (KEYS, None, None, 1))
    refusing, taking = plain_template("pass", rejects=True), plain_template("pass")
    choice = choose(problem, (refusing, taking, plain_template("pass")))
    assert choice.template is taking
    assert [r.code for r in choice.rejections] == ["kernel_shape"]
    nothing = choose(problem, TEMPLATES)  # kernels for CUDA alone
    assert nothing.template is None
    assert [r.code for r in nothing.rejections] == ["no_kernel_template"]


def test_kernel_runs_when_it_can(plain_template):
    dispatch = Dispatcher(OPERATOR, (plain_template("return keys + 1, protected"),))
    plus, absent = dispatch(KEYS)
    assert torch.equal(plus, KEYS + 1) and absent is None


@pytest.mark.parametrize(
    ("body", "rejects", "message"),
    [
        ("raise RuntimeError('out of registers')", False, "RuntimeError: out of registers"),
        ("import no_such_compiler", False, "ModuleNotFoundError"),
        ("return (", False, "SyntaxError"),
        ("pass", True, "kernel_shape .plain.: it is a stub"),
    ],
)
def test_reference_runs_with_one_warning_when_not(plain_template, body, rejects, message):
    dispatch = Dispatcher(OPERATOR, (plain_template(body, rejects),))
    with pytest.warns(FallbackWarning, match=message):
        first = dispatch(KEYS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = dispatch(KEYS, None, None, 1)
    for want, one, two in zip(OPERATOR.reference(KEYS), first, second, strict=True):
        assert torch.equal(want, one) and torch.equal(want, two)


def test_wrong_arguments_never_reach_a_kernel(plain_template):
    dispatch = Dispatcher(OPERATOR, (plain_template("raise SystemExit"),))
    with pytest.raises(ValueError, match="protected must be int64"):
        dispatch(KEYS, None, torch.zeros(2, 5, dtype=torch.bool))


def test_memory_that_runs_out_is_the_callers_to_see(plain_template):
    dispatch = Dispatcher(OPERATOR, (plain_template("raise torch.OutOfMemoryError('full')"),))
    with pytest.raises(torch.OutOfMemoryError):
        dispatch(KEYS)


def test_installed_kernel_serves_the_operator_while_the_handle_lives(plain_template):
    body = "return keys.new_full((2, 5), 7.0), torch.zeros(2, 5, dtype=torch.int64)"
    library = install_kernels((plain_template(body),))
    try:
        score, _ = bipartite_match.bipartite_match(KEYS)
        compiled = torch.compile(OPERATOR.overload, backend="aot_eager")
        assert (score == 7).all() and (compiled(KEYS)[0] == 7).all()
    finally:
        library._destroy()
    assert torch.equal(bipartite_match.bipartite_match(KEYS)[0], OPERATOR.reference(KEYS)[0])


def test_installing_imports_no_compiler():
    code = (
        "import sys; from tokenpass.codegen.dispatch import install_kernels; "
        "handle = install_kernels(); assert 'triton' not in sys.modules"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], cwd=root, env={"PYTHONPATH": root}, check=True)
