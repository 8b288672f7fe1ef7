"""An outcome where machines read it: JSON, JUnit XML, GitHub's annotations and step summary."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict
from typing import Any

from tokenpass.check.outcome import CaseResult, Gate, Outcome

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold at all."""

ANNOTATION = {
    "failed": "error",
    "wrong": "error",
    "broken": "error",
    "inconclusive": "warning",
}
MARK = {
    "passed": "✅",
    "failed": "❌",
    "wrong": "❌",
    "broken": "💥",
    "inconclusive": "❔",
    "skipped": "➖",
}


def as_data(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain data: `version` 1 of its form."""
    return {
        "version": 1,
        "exit_code": outcome.exit_code,
        "interrupted": outcome.interrupted,
        "file": outcome.file,
        "notes": list(outcome.notes),
        "fingerprint": outcome.fingerprint.model_dump(),
        "cases": {case.name: case_data(case) for case in outcome.cases},
    }


def case_data(case: CaseResult) -> dict[str, Any]:
    """One case as plain data."""
    return {
        "status": case.status,
        "seconds": case.seconds,
        "gates": [asdict(gate) for gate in case.gates],
        "quality": case.quality,
        "speed": None if case.speed is None else case.speed.model_dump(),
        "facts": None if case.facts is None else case.facts.model_dump(),
    }


def as_json(outcome: Outcome) -> str:
    """The same as text."""
    return json.dumps(as_data(outcome), indent=2) + "\n"


def lines_of(gate: Gate) -> list[str]:
    """A gate in words: what it found, then each difference."""
    return [gate.told, *map(str, gate.differences)]


def as_text(case: CaseResult) -> str:
    """A case in plain lines: its gates, those that did not pass with all that they found."""
    lines = [f"tokenpass check of {case.name}: {case.status}"]
    for gate in case.gates:
        told = lines_of(gate)
        lines.append(f"  {gate.name} {gate.status}: {told[0]}")
        lines += [f"    {line}" for line in told[1:]]
    return clean("\n".join(lines))


def as_junit(outcome: Outcome) -> str:
    """JUnit XML: a suite for each case, a test for each gate."""
    root = ET.Element("testsuites", name="tokenpass check")
    for case in outcome.cases:
        counts = [gate.status for gate in case.gates]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=clean(case.name),
            tests=str(len(counts)),
            failures=str(sum(status in ("failed", "wrong") for status in counts)),
            errors=str(counts.count("broken")),
            skipped=str(sum(status in ("skipped", "inconclusive") for status in counts)),
            time=f"{case.seconds:.2f}",
        )
        for gate in case.gates:
            test = ET.SubElement(
                suite, "testcase", classname=f"tokenpass.{clean(case.name)}", name=gate.name
            )
            kind = {"failed": "failure", "wrong": "failure", "broken": "error"}.get(gate.status)
            if kind is not None:
                body = ET.SubElement(test, kind, message=clean(gate.told), type=gate.status)
                body.text = clean("\n".join(lines_of(gate)))
            elif gate.status in ("skipped", "inconclusive"):
                ET.SubElement(test, "skipped", message=clean(gate.told))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def clean(text: str) -> str:
    """Text without what XML cannot hold, which is what drives a terminal too."""
    return NOT_XML.sub("\ufffd", text)


def workflow_commands(outcome: Outcome) -> str:
    """GitHub's workflow commands: one for each gate that did not pass."""
    found = []
    for case in outcome.cases:
        for gate in case.gates:
            if gate.status not in ANNOTATION:
                continue
            place = f"file={in_property(outcome.file)},line={case.line}"
            title = in_property(f"{case.name}: {gate.name} {gate.status}")
            text = in_message("\n".join(lines_of(gate)))
            found.append(f"::{ANNOTATION[gate.status]} {place},title={title}::{text}\n")
    return "".join(found)


def in_message(text: str) -> str:
    """Text as a workflow command's message: one line, and nothing that drives a terminal."""
    return clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def in_property(text: str) -> str:
    """Text as a workflow command's property."""
    return in_message(text).replace(":", "%3A").replace(",", "%2C")


def summary(outcome: Outcome) -> str:
    """A table in GitHub's Markdown, for the step summary."""
    lines = ["### tokenpass check", "", "| case | gate | | found |", "|---|---|---|---|"]
    for case in outcome.cases:
        for gate in case.gates:
            told = "<br>".join(in_cell(line) for line in lines_of(gate))
            lines.append(f"| {in_cell(case.name)} | {gate.name} | {MARK[gate.status]} | {told} |")
    lines += [f"\n{in_cell(note)}" for note in outcome.notes]
    if outcome.interrupted:
        lines.append("\n**Interrupted: these results are not all.**")
    return "\n".join(lines) + "\n"


def in_cell(text: str) -> str:
    """Text as a table's cell: nothing in it is markup."""
    flat = " ".join(clean(text).split())
    escaped = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~@:])", lambda found: f"&#{ord(found[0])};", escaped)
