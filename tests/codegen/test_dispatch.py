"""A call gets its kernel or, with one warning, the reference; selection says why."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
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
    nothing = choose(problem, [t for t in TEMPLATES if t.device == "cuda"])
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


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("raise torch.OutOfMemoryError('full')", torch.OutOfMemoryError, "full"),
        ("torch.empty(2**55)", RuntimeError, "can't allocate memory"),
        ("raise MemoryError", MemoryError, None),
        (
            "from tokenpass.errors import CallError; raise CallError('index 9')",
            IndexError,
            "index 9",
        ),
    ],
)
def test_memory_that_runs_out_and_wrong_calls_are_the_callers_to_see(
    plain_template, body, kind, message
):
    dispatch = Dispatcher(OPERATOR, (plain_template(body),))
    for _ in range(2):  # the kernel is not given up
        with pytest.raises(kind, match=message):
            dispatch(KEYS)


class Counting:
    """A template's methods, each call noted."""

    def __init__(self, template):
        self.template = template
        self.calls = []

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.template, name)


def test_a_kind_of_call_is_examined_once(plain_template, monkeypatch):
    counting = Counting(plain_template("return keys.sum(), keys.shape[1]"))
    dispatch = Dispatcher(OPERATOR, (counting,))
    assert [dispatch(KEYS[:, :n])[1] for n in (9, 7, 9, 7)] == [9, 7, 9, 7]
    assert counting.calls.count("supports") == 2  # one for each shape
    assert counting.calls.count("launcher") == 1  # one source for both
    counting.calls.clear()
    for protected in (None, torch.zeros(1, 3, dtype=torch.int64), None):
        dispatch(KEYS, None, protected)
    dispatch(KEYS.to(torch.float16))
    assert counting.calls.count("supports") == 2  # places that are protected, another dtype
    with pytest.raises(ValueError, match="2 equal heads"):
        dispatch(KEYS[..., :3], None, None, 2)

    monkeypatch.setattr("tokenpass.codegen.dispatch.MOST_KINDS", 3)
    few = Dispatcher(OPERATOR, (plain_template("return keys.shape[1], None"),))
    for n in (*range(1, 10), *range(1, 10)):
        assert few(KEYS[:, :n])[0] == n
        assert len(few._kinds) <= 3


def test_a_kernel_that_fails_later_gives_way_for_all_its_calls(plain_template):
    body = "return (keys.shape[0], None) if keys.shape[1] != 5 else no_such_name"
    dispatch = Dispatcher(OPERATOR, (plain_template(body),))
    assert dispatch(KEYS) == (2, None)
    with pytest.warns(FallbackWarning, match="no_such_name"):
        dispatch(KEYS[:, :5])
    for found, want in zip(dispatch(KEYS), OPERATOR.reference(KEYS), strict=True):
        assert torch.equal(found, want)


def test_what_the_reference_raises_is_the_callers_to_see(plain_template):
    broken = replace(OPERATOR, reference=lambda *_: 1 / 0)
    dispatch = Dispatcher(broken, (plain_template("pass", rejects=True),))
    with pytest.warns(FallbackWarning), pytest.raises(ZeroDivisionError):
        dispatch(KEYS)
    with pytest.raises(ZeroDivisionError):
        dispatch(KEYS)


# the process's own kernels may have been installed by another test
@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")
def test_installed_kernel_serves_the_operator_while_the_handle_lives(plain_template):
    body = "return keys.new_full((2, 5), 7.0), torch.zeros(2, 5, dtype=torch.int64)"
    library = install_kernels((plain_template(body),))
    try:
        score, _ = bipartite_match.bipartite_match(KEYS)
        compiled = torch.compile(OPERATOR.overload, backend="aot_eager")
        assert (score == 7).all() and (compiled(KEYS)[0] == 7).all()
    finally:
        library._destroy()
    found, want = bipartite_match.bipartite_match(KEYS)[0], OPERATOR.reference(KEYS)[0]
    torch.testing.assert_close(found, want, rtol=0, atol=2e-6)


def test_installing_imports_no_compiler():
    code = (
        "import sys; from tokenpass.codegen.dispatch import install_kernels; "
        "handle = install_kernels(); assert 'triton' not in sys.modules"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], cwd=root, env={"PYTHONPATH": root}, check=True)
