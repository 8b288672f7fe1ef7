"""Documents say what the code says: codes, links, and every Python block runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tokenpass
from tokenpass.check.check_file import read_check_file
from tokenpass.edits import REJECTION_CODES
from tokenpass.options import read_options

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("tokenpass", "passes", "codegen")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# functions whose first argument, or whose returned triple's first entry, is a code
MAKERS = {"Rejection", "refusal"}
REASONS = "Reason"


def source_files() -> Iterator[Path]:
    for folder in SOURCES:
        for file in (ROOT / folder).rglob("*.py"):
            if not any(parent.is_symlink() for parent in file.parents if parent != ROOT):
                yield file


def codes_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            first = node.args[0]
            if node.func.id in MAKERS and isinstance(first, ast.Constant):
                yield str(first.value)
        if isinstance(node, ast.FunctionDef) and getattr(node.returns, "id", "") == REASONS:
            for found in ast.walk(node):
                if isinstance(found, ast.Return) and isinstance(found.value, ast.Tuple):
                    (first, *_) = found.value.elts
                    assert isinstance(first, ast.Constant), ast.unparse(found)
                    yield str(first.value)


def test_every_code_of_the_sources_is_listed_and_no_other() -> None:
    used = {code for file in source_files() for code in codes_in(ast.parse(file.read_text()))}
    assert used == set(REJECTION_CODES)


def test_every_code_is_explained_and_no_other() -> None:
    text = (ROOT / "docs" / "rejections.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+)$", text, re.M) == list(REJECTION_CODES)


def test_the_search_for_codes_sees_them() -> None:
    text = "def f() -> Reason:\n    return 'a', 'b', ''\nx = Rejection('c', 'd', 'e')\n"
    assert sorted(codes_in(ast.parse(text))) == ["a", "c"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def blocks(page: Path) -> list[tuple[int, str]]:
    """Python blocks with the line where each starts."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One namespace per page; files are written to a scratch folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENPASS_CACHE_DIR", str(tmp_path / "cache"))
    tokenpass.reset()
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page):
        # the padding makes tracebacks name the page's own lines
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
    assert (len(namespace) > 2) == bool(blocks(page))  # `__name__` and `__builtins__` are there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_are_valid_files(page: Path, tmp_path: Path) -> None:
    for code in re.findall(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        (tmp_path / "file.yaml").write_text(code, encoding="utf-8")
        if re.search("^cases:", code, re.M):
            assert read_check_file(tmp_path / "file.yaml").cases
        else:
            assert read_options({"config": tmp_path / "file.yaml"}) != read_options({})


def test_some_blocks_were_found() -> None:
    assert sum(len(blocks(page)) for page in PAGES) >= 3
