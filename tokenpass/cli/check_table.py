"""What `tokenpass check` shows: a table for each case, and the verdict."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenpass.check import written
from tokenpass.check.outcome import EXIT, CaseResult, Outcome, Status

STYLE: dict[Status, str] = {
    "passed": "green",
    "failed": "bold red",
    "wrong": "bold red",
    "broken": "bold red",
    "inconclusive": "yellow",
    "skipped": "dim",
}


def shown(outcome: Outcome) -> RenderableType:
    """A table of all gates, what differs below each, and the verdict."""
    parts: list[RenderableType] = [case_table(case) for case in outcome.cases]
    parts += [Text(note, style="dim") for note in outcome.notes]
    if outcome.interrupted:
        parts.append(Text("interrupted: these results are not all", style="bold yellow"))
    counts = dict.fromkeys(EXIT, 0)
    for case in outcome.cases:
        counts[case.status] += 1
    verdict = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    style = "bold green" if outcome.exit_code == 0 else "bold red"
    parts.append(Text(f"{verdict} (exit code {outcome.exit_code})", style=style))
    return Group(*parts)


def case_table(case: CaseResult) -> Table:
    """One case's gates; a difference stands on a line of its own."""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=Text(written.clean(case.name), "bold"),
        title_justify="left",
    )
    table.add_column("gate", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for gate in case.gates:
        lines = [Text(written.clean(gate.told))]
        lines += [
            Text(written.clean(f"  {one}"), style="dim" if one.better else "")
            for one in gate.differences
        ]
        table.add_row(gate.name, Text(gate.status, STYLE[gate.status]), Text("\n").join(lines))
    return table
