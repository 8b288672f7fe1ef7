"""What is built and shipped: every file once, and a model compiles where only the package is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

# Where the files of the three source folders are found once installed.
FOLDERS = {"tokenpass": "tokenpass", "passes": "tokenpass/passes", "codegen": "tokenpass/codegen"}
BUILD_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
JUNK = shutil.ignore_patterns("__pycache__", "*.pyc")

COMPILE = """
import sys
import torch
import importlib.metadata

home, lowering = sys.argv[1:]
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()
inputs = torch.randn(2, 3, 8)
compiled = torch.compile(
    model, backend="tokenpass", options={"budget": 1.0, "lowering": lowering, "on_failure": "raise"}
)
with torch.no_grad():
    torch.testing.assert_close(compiled(inputs), model(inputs))

import tokenpass
import tokenpass.codegen
import tokenpass.passes

assert importlib.metadata.version("tokenpass") == tokenpass.__version__
loaded = [m for name, m in sys.modules.items() if name.split(".")[0] == "tokenpass"]
assert len(loaded) > 5, loaded
strangers = [m.__file__ for m in loaded if not m.__file__.startswith(home)]
assert not strangers, strangers
print("compiled")
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command away from the checkout and returns what it printed."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source distribution, and the wheel made from it, of a copy without earlier builds."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILD_FILES:
        shutil.copy(repository / name, source)
    for name in (*FOLDERS, "tests"):
        shutil.copytree(repository / name, source / name, symlinks=True, ignore=JUNK)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=source)
    wheels = list((source / "dist").glob("*.whl"))
    archives = list((source / "dist").glob("*.tar.gz"))
    assert len(wheels) == len(archives) == 1
    return {"wheel": wheels[0], "sdist": archives[0]}


def sources(repository: Path) -> dict[str, str]:
    """Every file of the three folders: its path in the checkout, and in an installed package."""
    return {
        path.relative_to(repository).as_posix(): path.relative_to(repository)
        .as_posix()
        .replace(folder, installed, 1)
        for folder, installed in FOLDERS.items()
        for path in (repository / folder).rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and not any(link in path.parents for link in _links(repository))
    }


def _links(repository: Path) -> tuple[Path, ...]:
    return repository / "tokenpass" / "passes", repository / "tokenpass" / "codegen"


def test_links_point_at_the_folders(repository: Path) -> None:
    targets = [link.readlink().as_posix() for link in _links(repository)]
    assert targets == ["../passes", "../codegen"]


def test_wheel_holds_every_file_once(built: dict[str, Path], repository: Path) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        entry_points = wheel.read(
            next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        ).decode()
    assert sorted(names) == sorted(sources(repository).values())
    assert "tokenpass/passes/__init__.py" in names
    assert "tokenpass/codegen/__init__.py" in names
    assert "tokenpass/py.typed" in names
    assert "tokenpass = tokenpass.backend:tokenpass" in entry_points
    assert "tokenpass = tokenpass.cli:main" in entry_points


def test_sdist_holds_every_file_once(built: dict[str, Path], repository: Path) -> None:
    with tarfile.open(built["sdist"]) as archive:
        files = [member.name.partition("/")[2] for member in archive if not member.isdir()]
    inside = [name for name in files if name.partition("/")[0] in FOLDERS]
    assert sorted(inside) == sorted(sources(repository))
    assert set(BUILD_FILES) <= set(files)
    assert not [name for name in files if name.startswith("tests/")]


@pytest.mark.parametrize(("kind", "lowering"), [("wheel", "inductor"), ("sdist", "eager")])
def test_a_model_compiles_where_only_the_package_is(
    built: dict[str, Path], tmp_path: Path, kind: str, lowering: str
) -> None:
    """The environment is fresh; dependencies alone are lent by this one.

    A plain path in a .pth file lends packages without running the .pth files beside them, so that
    an editable install of tokenpass stays behind; the script checks that too.
    """
    home = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    python = home / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    lent = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    Path(site.strip(), "lent.pth").write_text("\n".join(lent) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    run(*pip, "install", *options, built[kind], cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "compile_it.py").write_text(COMPILE, encoding="utf-8")
    assert "compiled" in run(python, "compile_it.py", home, lowering, cwd=elsewhere)
