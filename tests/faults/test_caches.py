"""Damaged, foreign and contested cache files: never another result, never a crash."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tokenpass.codegen.base import KernelTemplate
from tokenpass.codegen.cache import cache_folder, load, source_hash, source_of, store
from tokenpass.codegen.dispatch import Dispatcher
from tokenpass.cost.device import (
    DeviceProfile,
    cached_profile_path,
    find_profile,
    load_profile,
    shipped_profile,
)
from tokenpass.errors import ConfigError, FallbackWarning, UserError
from tokenpass.ops import OPERATORS


class Plain(KernelTemplate):
    """A kernel in plain torch, which marks its results so that they differ from the reference."""

    name = "plain"
    operator = "bipartite_match"
    target = "triton"
    device = "cpu"

    def supports(self, problem):
        return None

    def parameters(self, problem):
        return {"rank": 3, "text": "ä\n"}

    def render(self, parameters):
        return (
            "import torch\n\n\n"
            "def launch(keys, sizes, protected, heads=1):\n"
            "    return torch.full((1,), 7.0), torch.zeros(1, dtype=torch.long)\n"
        )

    def launcher(self, parameters):
        return load(self, parameters).launch


SOURCE = source_of(Plain(), {"rank": 3, "text": "ä\n"})
MATCH = next(operator for operator in OPERATORS if operator.name == "bipartite_match")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENPASS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def call():
    """A call of the operator, and what its reference gives."""
    keys = torch.randn(1, 6, 4)
    return (keys, None, None), MATCH.reference(keys, None, None, 1)


def flipped(data: bytes) -> bytes:
    """The data with one bit of its middle byte turned over, out of ASCII."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :]


def become(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("kept")


def become_link(path: Path) -> None:
    victim = path.parent.parent / "victim"
    victim.write_text("raise SystemExit('run from elsewhere')\n")
    path.unlink()
    path.symlink_to(victim)


def become_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def become_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": become(lambda data: data[: len(data) // 2]),
    "flipped": become(flipped),
    "other version": become(lambda data: b"VERSION = 0\nversion: 99\n" + data),
    "empty": become(lambda data: b""),
    "binary": become(lambda data: bytes(range(256))),
    "folder": become_folder,
    "link": become_link,
    "dangling link": become_dangling,
    "link to itself": become_loop,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_kernel_file_is_never_run(damage, call):
    arguments, reference = call
    path = store("bipartite_match", SOURCE)
    damage(path)
    dispatcher = Dispatcher(MATCH, [Plain()])
    if path.is_dir():
        # it cannot be replaced by a file, and nothing in it is thrown away
        with pytest.warns(FallbackWarning, match="kernel plain failed"):
            found = dispatcher(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=True))
        assert (path / "inside").read_text() == "kept"
    else:
        assert dispatcher(*arguments)[0] == 7.0
        assert path.read_text(encoding="utf-8") == SOURCE and not path.is_symlink()
    victim = path.parent.parent / "victim"
    assert not victim.exists() or victim.read_text().startswith("raise")


def test_files_are_named_by_their_content(folder):
    path = store("bipartite_match", SOURCE)
    other = store("bipartite_match", SOURCE + "\n")
    assert path != other and source_hash(SOURCE) in path.name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_folder_is_private_whatever_the_mask_is(folder):
    before = os.umask(0)
    try:
        assert cache_folder() == folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_open_folder_is_refused_and_the_reference_runs(folder, mode, call):
    arguments, reference = call
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UserError, match="can be written by other users"):
        load(Plain(), {"rank": 3})
    with pytest.warns(FallbackWarning, match="can be written by other users"):
        found = Dispatcher(MATCH, [Plain()])(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=True))
    assert not list(folder.iterdir())


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes do not bind the superuser, so that the refusal is put in the place of the system's."""

    def refuse(**_) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    folder.mkdir(mode=0o500)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)


def a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("a file")


@pytest.mark.parametrize("block", [read_only, a_file])
def test_folder_that_cannot_be_written_runs_the_reference(folder, block, call, monkeypatch):
    arguments, reference = call
    block(folder, monkeypatch)
    dispatcher = Dispatcher(MATCH, [Plain()])
    with pytest.warns(FallbackWarning, match="kernel plain failed"):
        found = dispatcher(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=True))
    again = dispatcher(*arguments)  # with no second warning, which would be an error here
    assert all(torch.equal(a, b) for a, b in zip(again, reference, strict=True))


def test_path_below_a_file_runs_the_reference(folder, tmp_path, monkeypatch, call):
    arguments, reference = call
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOKENPASS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(FallbackWarning, match="kernel plain failed"):
        found = Dispatcher(MATCH, [Plain()])(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=True))
    assert find_profile("cpu").name == "generic-cpu"


def write_many(start, told) -> None:
    """What each of many processes does: store the same and other sources, over and over."""
    start.wait()
    for at in range(40):
        path = store("bipartite_match", SOURCE)
        if at % 3 == 0:
            path.write_text("cut")  # another process may see this, and must replace it
        module = load(Plain(), {"rank": 3, "text": "ä\n"})
        first, _ = module.launch(None, None, None)
        if float(first) != 7.0:
            told.put("wrong result")
    told.put(store("bipartite_match", SOURCE).name)


def test_eight_processes_write_the_same_file(folder):
    context = multiprocessing.get_context("fork")
    start, told = context.Event(), context.Queue()
    workers = [context.Process(target=write_many, args=(start, told)) for _ in range(8)]
    for worker in workers:
        worker.start()
    start.set()
    names = [told.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert set(names) == {f"bipartite_match_{source_hash(SOURCE)}.py"}
    assert store("bipartite_match", SOURCE).read_text(encoding="utf-8") == SOURCE
    assert [path.name for path in folder.iterdir()] == names[:1]  # no temporary file is left


# device profiles ----------------------------------------------------------------------------


@pytest.fixture
def measured() -> DeviceProfile:
    """A profile that stands out from the shipped one."""
    return shipped_profile("generic-cpu").model_copy(update={"name": "measured here"})


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_profile_gives_way_to_the_shipped_one(damage, measured, caplog):
    path = cached_profile_path("cpu")
    measured.save(path)
    assert find_profile("cpu").name == "measured here"
    damage(path)
    with caplog.at_level(logging.WARNING, logger="tokenpass"):
        assert find_profile("cpu") == shipped_profile("generic-cpu")
    assert str(path) in caplog.text and "measure anew" in caplog.text
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_profile(path)  # named by the user it is an error


def test_a_profile_of_another_machine_is_not_used(measured, caplog):
    path = cached_profile_path("cpu")
    measured.model_copy(update={"fingerprint": "another processor"}).save(path)
    with caplog.at_level(logging.WARNING, logger="tokenpass"):
        assert find_profile("cpu").name == "generic-cpu"
    assert "another processor" in caplog.text


def test_saved_profiles_replace_damaged_ones_in_private_folders(measured, folder):
    before = os.umask(0)
    try:
        path = cached_profile_path("cpu")
        measured.save(path)
    finally:
        os.umask(before)
    for made in (folder, path.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert cache_folder() == folder
    for change in ("truncated", "link", "dangling link", "link to itself"):
        DAMAGE[change](path)
        measured.save(path)
        assert find_profile("cpu").name == "measured here" and not path.is_symlink()
    assert [found.name for found in path.parent.iterdir()] == [path.name]


# what would run what it reads ---------------------------------------------------------------

RUNS = re.compile(r"\bpickle\b|\btorch\.load\((?!.*weights_only=True)|(?<![\w.])(?:eval|exec)\(")

# Generated kernels: the text that runs is the one just made, never one that was read.
# A bundle's tensors are loaded with weights_only=True; pickle's name is there to catch its error.
ALLOWED = {"codegen/cache.py": 1, "tokenpass/bundle/folder.py": 2}


def test_nothing_runs_what_it_reads(repository):
    found: dict[str, int] = {}
    for folder in ("tokenpass", "passes", "codegen"):
        for path in sorted(repository.joinpath(folder).rglob("*.py")):
            name = path.relative_to(repository).as_posix()
            if name.startswith(("tokenpass/passes/", "tokenpass/codegen/")):
                continue  # links to the folders beside it
            count = len(RUNS.findall(path.read_text(encoding="utf-8")))
            found |= {name: count} if count else {}
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pickle", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=True)", False),
        ("x = eval(text)", True),
        ("exec(code)", True),
        ("model.eval()", False),
        ("self.exec(code)", False),
    ],
)
def test_what_is_looked_for_is_found(line, found):
    assert bool(RUNS.search(line)) == found
