"""Importing costs nothing, and nothing is imported twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tokenpass

HEAVY = {"torch", "numpy", "sympy", "networkx", "yaml", "pydantic", "triton", "transformers"}
HEAVY |= {"scipy", "typer", "rich", "matplotlib", "safetensors"}

EVERYTHING = """
import collections, importlib, inspect, os, pkgutil, sys
import tokenpass

for found in pkgutil.walk_packages(tokenpass.__path__, "tokenpass."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)

files, classes = collections.defaultdict(set), collections.defaultdict(set)
root = os.path.realpath(os.getcwd())
for name, module in list(sys.modules.items()):
    file = os.path.realpath(getattr(module, "__file__", None) or os.devnull)
    if not file.startswith(root) or "site-packages" in file:
        continue
    files[file].add(name)
    for _, cls in inspect.getmembers(module, inspect.isclass):
        if cls.__module__ == name:
            classes[file, cls.__qualname__].add(id(cls))

assert "tokenpass.passes" in sys.modules and "tokenpass.codegen" in sys.modules
assert len(files) > 20 and len(classes) > 5, (len(files), len(classes))
twice = {file: names for file, names in files.items() if len(names) > 1}
twice |= {key: ids for key, ids in classes.items() if len(ids) > 1}
assert not twice, twice
"""


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


def added_modules(name: str, cwd: Path) -> set[str]:
    """Top-level modules that an import adds to a fresh interpreter."""
    code = f"import sys; old = set(sys.modules); import {name}; print(*set(sys.modules) - old)"
    done = run(code, cwd)
    assert done.returncode == 0, done.stderr
    return {module.split(".")[0] for module in done.stdout.split()}


def test_importing_tokenpass_is_light(repository: Path) -> None:
    added = added_modules("tokenpass", repository)
    assert "tokenpass" in added
    assert not added & HEAVY


def test_the_backend_loads_nothing_that_only_models_and_tools_need(repository: Path) -> None:
    """Through the entry point: the first compilation pays for what is loaded here."""
    code = "import torch, torch._dynamo, torch._inductor.compile_fx; old = set(sys.modules)"
    done = run(
        f"import sys; {code}; import tokenpass.backend; print(*set(sys.modules) - old)", repository
    )
    assert done.returncode == 0, done.stderr
    added = {module.split(".")[0] for module in done.stdout.split()}
    assert added >= {"tokenpass", "pydantic"}
    assert not added & {"transformers", "diffusers", "peft", "scipy", "typer", "rich", "matplotlib"}


def test_reading_options_needs_no_torch(repository: Path) -> None:
    added = added_modules("tokenpass.config", repository)
    assert "pydantic" in added
    assert not added & {"torch", "sympy", "networkx", "triton", "transformers"}


def test_from_the_root_everything_is_imported_once(repository: Path) -> None:
    done = run(EVERYTHING, repository)
    assert done.returncode == 0, done.stderr


def test_the_check_sees_a_second_import(repository: Path) -> None:
    done = run(
        EVERYTHING.replace("import tokenpass\n", "import tokenpass, passes\n", 1), repository
    )
    assert "AssertionError: {" in done.stderr
    assert "'passes'" in done.stderr


def test_pytest_imported_nothing_by_its_folder() -> None:
    assert not {"passes", "codegen"} & set(sys.modules)


def test_what_the_package_offers() -> None:
    assert dir(tokenpass) == ["__version__", "calibrate", "explain", "reset"]
    assert callable(tokenpass.calibrate)
    assert callable(tokenpass.explain)
    assert callable(tokenpass.reset)
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        tokenpass.explian  # noqa: B018


def test_no_lazy_name_is_a_module(repository: Path) -> None:
    """Else importing that module anywhere would put it in the function's place."""
    modules = {path.stem for path in (repository / "tokenpass").iterdir()}
    assert "config" in modules
    assert not modules & set(tokenpass.__all__)
