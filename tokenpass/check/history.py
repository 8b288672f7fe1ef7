"""What checks found over time: a file with a line of JSON for each run, which only grows."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenpass.check.baseline import Fingerprint
from tokenpass.check.outcome import CaseResult, Outcome, Status
from tokenpass.errors import ConfigError

STRICT = ConfigDict(frozen=True, extra="forbid")


class CaseEntry(BaseModel):
    """One case of a run.

    `share`: the predicted cost over dense, the mean of its graphs by their dense arithmetic;
    `speedup` with its interval where it was timed; `quality` where outputs were compared.
    """

    model_config = STRICT

    status: Status
    share: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    quality: dict[str, float] = Field(default_factory=dict)


class Entry(BaseModel):
    """One run."""

    model_config = STRICT

    version: Literal[1] = 1
    date: dt.datetime
    commit: str | None
    fingerprint: Fingerprint
    cases: dict[str, CaseEntry]


def entry_of(outcome: Outcome, folder: Path) -> Entry:
    """A run as history keeps it; `folder` is where its commit is asked for."""
    return Entry(
        date=dt.datetime.now(dt.UTC).replace(microsecond=0),
        commit=commit_of(folder),
        fingerprint=outcome.fingerprint,
        cases={case.name: case_entry(case) for case in outcome.cases},
    )


def case_entry(case: CaseResult) -> CaseEntry:
    """One case as history keeps it."""
    speed = case.speed
    return CaseEntry(
        status=case.status,
        share=predicted_share(case),
        speedup=None if speed is None else speed.speedup,
        low=None if speed is None else speed.low,
        high=None if speed is None else speed.high,
        quality=case.quality,
    )


def predicted_share(case: CaseResult) -> float | None:
    """The cost that is left of all graphs; None where nothing was planned."""
    graphs = () if case.facts is None else case.facts.graphs
    whole = sum(graph.dense_gflop for graph in graphs)
    if not whole:
        return None
    return round(sum(graph.share * graph.dense_gflop for graph in graphs) / whole, 4)


def commit_of(folder: Path) -> str | None:
    """The commit that is checked, by the workflow's own word or by git; None without either."""
    named = os.environ.get("GITHUB_SHA")
    if named:
        return named
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def append(entry: Entry, path: Path) -> None:
    """Add a run in one step; a line that an earlier run left unfinished is ended first.

    Raises `ConfigError` where that cannot be.
    """
    line = entry.model_dump_json() + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error


def read_history(path: Path) -> tuple[list[Entry], list[str]]:
    """All runs, and what is told of lines that are none: those are left out, not repaired.

    Raises `ConfigError` where the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    entries: list[Entry] = []
    notes: list[str] = []
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError:
            notes.append(f"{path}:{at}: is no run of this version's history; left out")
    return entries, notes
