"""What was so: a baseline file, read as data, and written such that its changes read well."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenpass import __version__
from tokenpass.check.facts import CaseFacts
from tokenpass.check.surroundings import limits
from tokenpass.cost.device import cpu_model
from tokenpass.errors import ConfigError

VERSION = 1
NAME = "tokenpass.baseline.json"
STRICT = ConfigDict(frozen=True, extra="forbid")


class Fingerprint(BaseModel):
    """What must be equal for two measured ratios to be compared, and what facts depend on.

    `cpus`, `memory_gib` and `governor` are what the machine and its container allow.
    """

    model_config = STRICT

    tokenpass: str
    torch: str
    transformers: str | None = None
    python: str
    device: str
    capability: str
    threads: int
    cpus: float
    memory_gib: float | None = None
    governor: str | None = None


class MeasuredSpeed(BaseModel):
    """Dense time over ours: the median of pairs and its interval; A/A is dense over dense.

    Times are medians in ms, kept to be looked at: they are never compared, nor is `load`, the
    processors that others kept busy. `inputs` and `fingerprint` say what the ratio is of; with
    others it is not compared either.
    """

    model_config = STRICT

    speedup: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    pairs: int = Field(ge=0)
    noise_low: float = Field(gt=0)
    noise_high: float = Field(gt=0)
    dense_ms: float
    ours_ms: float
    load: float = 0.0
    inputs: str
    fingerprint: Fingerprint


class CaseBaseline(BaseModel):
    """One case as it was."""

    model_config = STRICT

    model: str
    options: dict[str, Any]
    facts: CaseFacts
    quality: dict[str, float] = Field(default_factory=dict)
    speed: MeasuredSpeed | None = None
    fingerprint: Fingerprint


class Baseline(BaseModel):
    """All cases as they were, and the device profile that facts were planned with."""

    model_config = STRICT

    version: Literal[1] = VERSION
    tool: Literal["tokenpass check"] = "tokenpass check"
    device_profile: str
    device_profile_hash: str
    cases: dict[str, CaseBaseline]


def fingerprint() -> Fingerprint:
    """That of this process."""
    allowed = limits()
    return Fingerprint(
        tokenpass=__version__,
        torch=torch.__version__,
        transformers=installed("transformers"),
        python=platform.python_version(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model(),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        cpus=allowed.cpus,
        memory_gib=allowed.memory_gib,
        governor=allowed.governor,
    )


def installed(name: str) -> str | None:
    """A package's version, None where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class NoBaseline(ConfigError):
    """A file that is there and holds no baseline: cut off, or changed into something else."""


def read_baseline(path: Path) -> Baseline | None:
    """A baseline; None where there is no file.

    Raises `NoBaseline` for a file that is cut off or changed by hand into something else, with the
    place, and `ConfigError` for one that cannot be read or that a newer version wrote.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    again = "write it anew with --update-baseline"
    try:
        data = json.loads(text, parse_constant=refused)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise NoBaseline(f"{path}{place}: not valid JSON ({error}); {again}") from error
    except ValueError as error:
        raise NoBaseline(f"{path}: {error}; {again}") from error
    found = data.get("version") if isinstance(data, dict) else None
    if isinstance(found, int) and found > VERSION:
        raise ConfigError(
            f"{path}: version {found} was written by a newer tokenpass; this one reads {VERSION}"
        )
    try:
        return Baseline.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise NoBaseline(f"{path}: {where}: {first['msg']}; {again}") from error


def refused(name: str) -> float:
    """NaN and infinities are no numbers of a baseline."""
    raise ValueError(f"{name} is not a number that a baseline can hold")


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Keys sorted, a line each; in one step, so that an interrupted run leaves the old file."""
    text = json.dumps(baseline.model_dump(), indent=2, sort_keys=True, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error}") from error
