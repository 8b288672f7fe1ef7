"""Every form of the sample outcome as a file: `python -m tests.check.golden` writes them anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from tests.check.samples import outcome
from tokenpass.check.baseline import Baseline
from tokenpass.check.written import as_json, as_junit, as_text, summary, workflow_commands
from tokenpass.cli.check_table import shown

FOLDER = Path(__file__).parent / "golden"
SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "tokenpass.baseline.schema.json"


def table(width: int) -> str:
    """What the terminal shows."""
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as caught:
        console.print(shown(outcome(interrupted=True)))
    return "\n".join(line.rstrip() for line in caught.get().splitlines()) + "\n"


def schema() -> str:
    """The JSON Schema of a baseline."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(head | Baseline.model_json_schema(), indent=2) + "\n"


FORMS: dict[Path, Callable[[], str]] = {
    FOLDER / "outcome.json": lambda: as_json(outcome()),
    FOLDER / "junit.xml": lambda: as_junit(outcome()),
    FOLDER / "workflow_commands.txt": lambda: workflow_commands(outcome()),
    FOLDER / "summary.md": lambda: summary(outcome(interrupted=True)),
    FOLDER / "table.txt": lambda: table(100),
    FOLDER / "table_40.txt": lambda: table(40),
    FOLDER / "test.txt": lambda: as_text(outcome().cases[0]) + "\n",
    SCHEMA: schema,
}

if __name__ == "__main__":
    for path, made in FORMS.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made(), encoding="utf-8")
