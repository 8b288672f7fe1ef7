"""Every form of an outcome, with names that want to be markup."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

from rich.console import Console

from tests.check.samples import MACHINE, outcome
from tokenpass.check.outcome import CaseResult, Gate, Outcome, Status, worst
from tokenpass.check.written import as_json, as_junit, summary, workflow_commands
from tokenpass.cli.check_table import shown


def test_json() -> None:
    data = json.loads(as_json(outcome()))
    assert data["version"] == 1 and data["exit_code"] == 4 and data["interrupted"] is False
    first, fine = data["cases"].values()
    assert fine["status"] == "passed" and first["status"] == "wrong"
    (difference,) = first["gates"][0]["differences"]
    assert difference["before"] == "64 -> 32" and difference["why"] == "torch 1 -> 2"


def test_junit() -> None:
    text = as_junit(outcome())
    root = ET.fromstring(text)
    first, fine = root.findall("testsuite")
    assert dict(first.attrib) | {"name": ""} == {
        "name": "", "tests": "6", "failures": "2", "errors": "1", "skipped": "2", "time": "1.50",
    }  # fmt: skip
    assert fine.attrib["tests"] == "1" and not list(fine[0])
    failure = first[0].find("failure")
    assert failure is not None and failure.text is not None
    assert "tokens of layer 1: 64 -> 32 -> 64 -> 48" in failure.text
    assert "\x00" not in text and "\x1b" not in text and "<b>" not in text


def test_workflow_commands_are_one_line_each() -> None:
    lines = workflow_commands(outcome()).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error"] * 3 + ["::warning"]
    for line in lines:
        head, _, message = line[2:].partition("::")
        assert head.count(",") == 2 and "file=dir/a%2Cb.yaml,line=3" in head
        assert "::error" not in head and "\n" not in message
        assert "\x00" not in line and "\x1b" not in line
    assert "64 -> 32 -> 64 -> 48" in lines[0] and "%2509" not in lines[0]
    assert "%250A" in lines[1], "a percent sign of the text stays one"


def test_a_summary_has_no_markup_of_names() -> None:
    text = summary(outcome())
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 7
    for row in rows:
        assert row.count("|") == 5
    assert "\x00" not in text and "\x1b" not in text
    assert "<b>" not in text and "[link]" not in text and "`x`" not in text
    assert "Interrupted" in summary(outcome(interrupted=True))


def test_a_narrow_terminal() -> None:
    console = Console(width=40, record=True, force_terminal=False)
    with console.capture() as caught:
        console.print(shown(outcome()))
    lines = caught.get().splitlines()
    assert max(map(len, lines)) <= 40
    assert "\x1b" not in caught.get() and "\x00" not in caught.get()
    assert "exit code 4" in caught.get()


def test_exit_codes() -> None:
    def code(*statuses: Status, interrupted: bool = False) -> int:
        gates = tuple(Gate("g", status, "") for status in statuses)
        return Outcome("", (CaseResult("a", 1, gates),), MACHINE, interrupted=interrupted).exit_code

    assert code("passed", "skipped") == 0 and code("skipped") == 0 and code() == 0
    assert code("passed", "inconclusive") == 3 and code("inconclusive", "failed") == 1
    assert code("failed", "broken") == 5 and code("broken", "wrong", "failed") == 4
    assert code("passed", interrupted=True) == 3 and code("failed", interrupted=True) == 1
    assert worst(["skipped", "passed"]) == "passed"
