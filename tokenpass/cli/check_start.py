"""First files: `tokenpass check init MODULE:NAME` and `tokenpass check workflow`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from tokenpass.check import check_file
from tokenpass.cli import tables
from tokenpass.cli.consoles import out
from tokenpass.cli.target import load_target
from tokenpass.errors import ConfigError, UserError
from tokenpass.yaml_file import write_yaml

WORKFLOW = Path(".github/workflows/tokenpass.yml")
FIRST = """\
# Facts and speed of a model, beside a baseline: `tokenpass check`.
# Write the baseline once with `tokenpass check --update-baseline`, and commit both files.
"""


def init(target: str | None) -> None:
    """Write a first check file."""
    if target is None:
        raise UserError("check init: expected MODULE:NAME, which gives (model, args)")
    path = Path(check_file.NAME)
    if path.exists():
        raise UserError(f"check init: {path} is there already")
    load_target(target)  # what cannot be run is no first file
    name = target.rpartition(":")[2]
    case = {"model": target, "options": {"budget": 0.5}, "gates": {"tolerance": "5%"}}
    data = {"version": 1, "device_profile": "generic-cpu", "cases": {name: case}}
    save(path, FIRST + write_yaml(data))
    tables.saved(out, "check file written", path)


def workflow(target: str | None) -> None:
    """Write a workflow for GitHub: facts of every pull request, speed every night."""
    if target is not None:
        raise UserError(f"check workflow: unexpected {target!r}: it takes no model")
    if WORKFLOW.exists():
        raise UserError(f"check workflow: {WORKFLOW} is there already")
    save(WORKFLOW, (resources.files("tokenpass.cli") / "workflow.yml").read_text("utf-8"))
    tables.saved(out, "workflow written", WORKFLOW)


STARTS: dict[str, Callable[[str | None], None]] = {"init": init, "workflow": workflow}


def save(path: Path, text: str) -> None:
    """Write a file; raises `ConfigError` where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error
