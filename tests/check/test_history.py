"""A history only grows, says what it cannot read, and is drawn."""

from __future__ import annotations

import datetime as dt
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.check.samples import FACTS, HOSTILE, MACHINE, outcome
from tokenpass.check.history import (
    CaseEntry,
    Entry,
    append,
    commit_of,
    entry_of,
    predicted_share,
    read_history,
)
from tokenpass.check.history_plot import plot
from tokenpass.check.outcome import CaseResult
from tokenpass.errors import ConfigError, UserError


def entry(speedup: float | None = 1.5, status: str = "passed") -> Entry:
    bounds = (None, None) if speedup is None else (speedup - 0.1, speedup + 0.1)
    case = CaseEntry(status=status, share=0.6, speedup=speedup, low=bounds[0], high=bounds[1])
    return Entry(
        date=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        commit="abc",
        fingerprint=MACHINE,
        cases={"fine": case, HOSTILE + " $x$": case},
    )


def test_runs_are_added(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    append(entry(), path)
    first = path.read_bytes()
    append(entry(1.6), path)
    assert path.read_bytes().startswith(first)
    entries, notes = read_history(path)
    assert entries == [entry(), entry(1.6)] and not notes


def test_an_unfinished_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append(entry(), path)
    with path.open("a") as file:
        file.write('{"version": 1, "da')
    append(entry(1.6), path)
    with path.open("a") as file:
        file.write('{"version": 2}\n\n')
    entries, notes = read_history(path)
    assert entries == [entry(), entry(1.6)]
    assert [note.split(":")[1] for note in notes] == ["2", "4"]


def test_what_a_run_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SHA", "f00")
    found = entry_of(outcome(), tmp_path)
    assert found.commit == "f00" and found.fingerprint == MACHINE
    assert found.cases["fine"].speedup == 1.5 and found.cases["fine"].share == 0.62
    assert found.cases[HOSTILE].status == "wrong" and found.cases[HOSTILE].speedup is None


def test_a_share_of_several_graphs() -> None:
    small, large = (
        FACTS.graphs[0].model_copy(update={"share": share, "dense_gflop": size})
        for share, size in ((1.0, 1.0), (0.5, 3.0))
    )
    facts = FACTS.model_copy(update={"graphs": [small, large]})
    assert predicted_share(CaseResult("a", 1, (), facts)) == 0.625
    assert predicted_share(CaseResult("a", 1, ())) is None


def test_commits(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    assert commit_of(tmp_path) is None
    if (repository / ".git").exists():
        assert len(commit_of(repository) or "") == 40


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_history(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be written"):
        append(entry(), tmp_path)


def test_a_plot(tmp_path: Path) -> None:
    entries = [entry(), entry(None), entry(1.2, "failed"), entry(1.5)]
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    plot(entries, first)
    plot(entries, second)
    assert first.read_bytes() == second.read_bytes()
    words = " ".join(ET.parse(first).getroot().itertext())
    for word in ("fine", "measured", "predicted", "not passed", "2026-01-02", "$x$"):
        assert word in words
    assert "<b>" in words, "a name's markup is text"
    with pytest.raises(UserError, match="no runs"):
        plot([], first)
    with pytest.raises(ConfigError, match="cannot be written"):
        plot(entries, tmp_path / "none" / "c.svg")


def test_the_end_of_a_file_is_looked_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.touch()
    append(entry(), path)
    assert path.read_text().count(os.linesep) == 1
