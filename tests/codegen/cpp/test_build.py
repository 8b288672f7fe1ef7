"""Compiling, caching, checking and loading; the one pool of threads; floating-point state."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.cpp import build
from tokenpass.codegen.cpp.build import BuildError, load
from tokenpass.codegen.cpp.isa import ISAS, available
from tokenpass.codegen.dispatch import Dispatcher
from tokenpass.errors import FallbackWarning
from tokenpass.ops.bipartite_match import OPERATOR

SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'
KEYS = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
CPP = [template for template in TEMPLATES if template.target == "cpp"]
ROOT = Path(__file__).parents[3]


def answer(library):
    return library.answer()


def files(folder, suffix):
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


def test_source_and_library_lie_beside_each_other(own_cache_folder):
    assert answer(load("answer", SOURCE, "scalar")) == 42
    (text,), (library,) = files(own_cache_folder, ".cpp"), files(own_cache_folder, ".so")
    assert text.stem == library.stem and text.stem.startswith("answer_")
    assert len(list(own_cache_folder.iterdir())) == 2  # no temporary file is left
    assert not library.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    content = text.read_text()
    assert content.endswith(SOURCE) and "// -fopenmp\n" in content
    version = subprocess.run(
        [*build.compiler(None)[0], "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert content.startswith(f"// {version.splitlines()[0]}\n")


def test_library_is_compiled_once(monkeypatch):
    load("answer", SOURCE, "scalar")
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert answer(load("answer", SOURCE, "scalar")) == 42


def test_name_follows_source_flags_and_compiler(own_cache_folder, tmp_path, monkeypatch):
    load("answer", SOURCE, "scalar")
    load("answer", SOURCE + "\n", "scalar")
    monkeypatch.setitem(ISAS, "scalar", replace(ISAS["scalar"], flags=("-DOTHER",)))
    load("answer", SOURCE, "scalar")
    wrapper = script(tmp_path, 'if [ "$1" = --version ]; then echo other; exit; fi; exec g++ "$@"')
    monkeypatch.setenv("CXX", str(wrapper))
    load("answer", SOURCE, "scalar")
    assert len(files(own_cache_folder, ".so")) == 4


def script(folder, text):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_cxx_may_hold_arguments(monkeypatch):
    monkeypatch.setenv("CXX", f"{shutil.which('g++')} -DFORTY_TWO=42")
    assert answer(load("answer", SOURCE.replace("42", "FORTY_TWO"), "scalar")) == 42


def rewrite(path, content):
    """A new file: one that is loaded must not change under its process."""
    path.unlink()
    path.write_bytes(content)


def change_byte(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    rewrite(path, content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: change_byte(path, 2000),
        lambda path: change_byte(path, -1),
        lambda path: rewrite(path, path.read_bytes()[:-100]),
        lambda path: rewrite(path, b""),
        lambda path: rewrite(path, path.read_bytes() + b"x"),
    ],
    ids=["a bit", "its hash", "cut", "empty", "longer"],
)
def test_a_changed_library_is_never_loaded(damage, own_cache_folder):
    load("answer", SOURCE, "scalar")
    (library,) = files(own_cache_folder, ".so")
    whole = library.read_bytes()
    damage(library)
    with pytest.raises(BuildError, match="was changed since it was compiled"):
        load("answer", SOURCE, "scalar")
    assert not library.exists()
    assert answer(load("answer", SOURCE, "scalar")) == 42  # compiled anew
    assert library.read_bytes()[:64] == whole[:64]


def test_a_link_in_place_of_a_library_is_replaced(own_cache_folder, tmp_path):
    load("answer", SOURCE, "scalar")
    (library,) = files(own_cache_folder, ".so")
    other = tmp_path / "other.so"
    library.rename(other)
    library.symlink_to(other)
    assert answer(load("answer", SOURCE, "scalar")) == 42
    assert not library.is_symlink()


def test_a_library_that_fits_its_hash_and_is_none(monkeypatch):
    content = b"no library" + build.hashlib.sha256(b"no library").digest()
    monkeypatch.setattr(build, "_compile", lambda *given: given[-1].write_bytes(content))
    with pytest.raises(BuildError, match="cannot be loaded"):
        load("answer", SOURCE, "scalar")


def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def compiler_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))


def compiler_that_fails(tmp_path, monkeypatch):
    text = 'if [ "$1" = --version ]; then echo broken; exit; fi; echo out of luck >&2; exit 1'
    monkeypatch.setenv("CXX", str(script(tmp_path, text)))


def compiler_that_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(script(tmp_path, "echo silent")))


def compiler_without_a_version(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(script(tmp_path, "exit 0")))


def open_folder(tmp_path, monkeypatch):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("TOKENPASS_CACHE_DIR", str(folder))


def folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOKENPASS_CACHE_DIR", str(tmp_path / "file" / "cache"))


def changed_library(tmp_path, monkeypatch):
    Dispatcher(OPERATOR, CPP)(KEYS)
    (library,) = files(tmp_path / "cache", ".so")
    change_byte(library, 3000)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (no_compiler, "no C.. compiler: g.. and clang.. not found; set CXX"),
        (compiler_that_is_not_there, "nothing cannot be run"),
        (compiler_that_fails, "out of luck"),
        (compiler_that_writes_nothing, "No such file"),
        (compiler_without_a_version, "says nothing"),
        (open_folder, "can be written by other users"),
        (folder_that_cannot_be_written, "Not a directory"),
        (changed_library, "was changed since it was compiled"),
    ],
)
def test_reference_runs_with_one_warning_when_a_kernel_cannot(
    trouble, message, tmp_path, monkeypatch
):
    build.compiler.cache_clear()
    monkeypatch.delenv("CXX", raising=False)
    trouble(tmp_path, monkeypatch)
    dispatch = Dispatcher(OPERATOR, CPP)
    with pytest.warns(FallbackWarning, match=message) as caught:
        results = [dispatch(KEYS), dispatch(KEYS), dispatch(KEYS[:, 1:])]
    assert len(caught) == 1
    build.compiler.cache_clear()
    for want, *got in zip(OPERATOR.reference(KEYS), *results[:2], strict=True):
        assert all(torch.equal(want, one) for one in got)


def test_kernels_are_compiled_in_parallel_by_several_processes(own_cache_folder):
    code = (
        "from tests.codegen.cpp.test_build import SOURCE\n"
        "from tokenpass.codegen.cpp.build import load\n"
        "for at in range(4):\n"
        "    assert load('answer', SOURCE + '// ' + str(at) + chr(10), 'scalar').answer() == 42\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    workers = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(4)]
    assert [worker.wait(120) for worker in workers] == [0] * 4
    assert len(list(own_cache_folder.iterdir())) == 8


def test_instruction_sets_are_what_the_processor_says(monkeypatch):
    assert available()[-1] == "scalar"
    for flags, best in (
        ((), "scalar"),
        (("avx2",), "scalar"),  # and no fused multiply-add
        (("avx2", "fma", "f16c"), "avx2"),
        (("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"), "avx512"),
    ):
        monkeypatch.setattr(
            "tokenpass.codegen.cpp.isa.processor_flags", lambda flags=flags: frozenset(flags)
        )
        assert available()[0] == best
        assert available(("avx2", "scalar"))[0] in ("avx2", "scalar")


CHILD = """
import sys
from pathlib import Path
import torch
from tokenpass.codegen.cpp.build import load

library = load("pool", sys.argv[1], "scalar")
pools = {
    line.split()[-1]
    for line in Path("/proc/self/maps").read_text().splitlines()
    if any(name in line for name in ("libgomp", "libomp", "libiomp"))
}
assert len(pools) == 1, pools
for threads in (1, 2, 3, 1):
    torch.set_num_threads(threads)
    assert library.pool() == threads
tiny = torch.tensor([1e-40, -3e-39])
assert (tiny * 1.0 == tiny).all() and (tiny.numpy() * 0.5 != 0).all()
assert float.fromhex("0x1p-1074") * 1.0 != 0.0
assert (torch.full((4096,), 1e-40) * 0.5 != 0).all()
"""

POOL = """\
#include <omp.h>
extern "C" __attribute__((visibility("default"))) int pool() {
    int threads = 0;
#pragma omp parallel
#pragma omp single
    threads = omp_get_num_threads();
    return threads;
}
"""


def test_one_pool_of_threads_and_subnormal_numbers(own_cache_folder):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TOKENPASS_CACHE_DIR": str(own_cache_folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, POOL], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_kernel_runs_with_the_threads_that_torch_was_given(own_cache_folder):
    """Also from a Python thread that has not used torch before."""
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        dispatch = Dispatcher(OPERATOR, CPP)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            thread = threading.Thread(target=lambda: found.append(dispatch(KEYS)))
            thread.start()
            thread.join()
    finally:
        torch.set_num_threads(before)
    for got, want in zip(found[0], OPERATOR.reference(KEYS), strict=True):
        torch.testing.assert_close(got, want)
