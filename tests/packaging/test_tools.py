"""The tools see what they are said to check: also what lies behind the two links."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKED = ("tokenpass", "passes", "codegen", "benchmarks", "tests")
TESTED_EXTRAS = ("cli", "models", "pytest", "report", "dev")
JUNK = shutil.ignore_patterns("__pycache__", "*.pyc")


def tool(name: str, *arguments: str, cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a tool of this environment."""
    command = [str(Path(sys.executable).parent / name), *arguments]
    return subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """A copy of what the tools check, to break."""
    shutil.copy(repository / "pyproject.toml", tmp_path)
    shutil.copy(repository / "setup.py", tmp_path)
    for name in CHECKED:
        shutil.copytree(repository / name, tmp_path / name, symlinks=True, ignore=JUNK)
    return tmp_path


def test_pyright_sees_every_file_once_and_what_is_behind_the_links(copy: Path) -> None:
    (copy / "passes" / "wrong.py").write_text('number: int = "one"\n', encoding="utf-8")
    links = [copy / "tokenpass" / name for name in ("passes", "codegen")]
    files = [
        path
        for folder in CHECKED
        for path in (copy / folder).rglob("*.py")
        if not any(link in path.parents for link in links)
    ]
    done = tool("pyright", "--pythonpath", sys.executable, "--outputjson", cwd=copy)
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] == len(files) + 1  # and setup.py
    errors = [one for one in told["generalDiagnostics"] if one["severity"] == "error"]
    assert [(Path(one["file"]).name, one["range"]["start"]) for one in errors] == [
        ("wrong.py", {"line": 0, "character": 14})
    ]


def test_import_linter_sees_behind_the_links(copy: Path) -> None:
    assert tool("lint-imports", cwd=copy).returncode == 0
    (copy / "passes" / "wrong.py").write_text("import tokenpass.plan\n", encoding="utf-8")
    done = tool("lint-imports", cwd=copy)
    assert done.returncode == 1
    assert "tokenpass.passes.wrong -> tokenpass.plan" in done.stdout


def test_import_linter_refuses_a_module_in_no_layer(copy: Path) -> None:
    (copy / "tokenpass" / "utils.py").touch()
    done = tool("lint-imports", cwd=copy)
    assert done.returncode == 1
    assert "utils" in done.stdout


@pytest.mark.parametrize("statement", ["import passes", "from codegen.triton import kernels"])
def test_ruff_refuses_the_folders_names(repository: Path, statement: str) -> None:
    done = tool(
        "ruff", "check", "--stdin-filename", "tokenpass/wrong.py", "-",
        cwd=repository, text=f'"""Wrong."""\n\n{statement}\n',
    )  # fmt: skip
    assert done.returncode == 1
    assert "TID251" in done.stdout


def test_constraints_pin_what_the_project_names(repository: Path) -> None:
    """Each dependency that pyproject.toml names for tests has one tested version."""
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(one for of in TESTED_EXTRAS for one in extras[of])]
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_stem(line.split("==")[0]) for line in lines if "==" in line}
    assert {_stem(name) for name in named} - {"tokenpass"} <= pinned


def _stem(requirement: str) -> str:
    for separator in "[<>=!~; ":
        requirement = requirement.split(separator)[0]
    return requirement.lower().replace("_", "-")
