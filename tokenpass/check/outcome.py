"""What a check found: gates, cases, and the exit code that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tokenpass.check.baseline import Fingerprint, MeasuredSpeed
from tokenpass.check.differences import Difference
from tokenpass.check.facts import CaseFacts

Status = Literal["passed", "failed", "inconclusive", "wrong", "broken", "skipped"]

EXIT: dict[Status, int] = {
    "passed": 0,
    "skipped": 0,
    "inconclusive": 3,
    "failed": 1,
    "broken": 5,
    "wrong": 4,
}
"""Exit codes, by what is worse: the last of these that some gate has."""


@dataclass(frozen=True)
class Gate:
    """One gate of a case: `told` says what was found beside what was asked."""

    name: str
    status: Status
    told: str
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class CaseResult:
    """One case. `line`: where it stands in the check file."""

    name: str
    line: int
    gates: tuple[Gate, ...]
    facts: CaseFacts | None = None
    quality: dict[str, float] = field(default_factory=dict)
    speed: MeasuredSpeed | None = None
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """The worst of its gates."""
        return worst([gate.status for gate in self.gates])


@dataclass(frozen=True)
class Outcome:
    """All cases. `interrupted`: somebody stopped it, and what is there is not all."""

    file: str
    cases: tuple[CaseResult, ...]
    fingerprint: Fingerprint
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 passed, 1 a gate failed, 3 inconclusive or interrupted, 4 wrong outputs, 5 broken."""
        code = EXIT[worst([case.status for case in self.cases])]
        return 3 if self.interrupted and code == 0 else code


def worst(statuses: Sequence[Status]) -> Status:
    """The last in the order of `EXIT`; passed counts before skipped where both are there."""
    found = [status for status in statuses if status != "skipped"]
    here: list[Status] = [status for status in EXIT if status in found]
    return here[-1] if here else "skipped"
