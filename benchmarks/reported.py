"""What tokenpass reports about its own work: predicted cost, its share of compile time, edits.

`tokenpass.report.last_reports()` holds a report for each graph compiled since the last reset; a
`Listener` tells which of them came while one variant was compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tokenpass.report import GraphReport, edit_text, last_reports


@dataclass(frozen=True)
class Reported:
    """Sums over the compiled graphs; `None` where nothing was reported (dense).

    `share` is the predicted cost as a share of dense, `own_s` the seconds of tokenpass itself
    (capture, analysis, plan, rewrite), `edits` and `table` the plan as text. `trouble` names the
    causes for which a graph was compiled dense against the plan.
    """

    share: float | None = None
    own_s: float | None = None
    distinct_levels: int | None = None
    edits: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listener:
    """Made before a compilation; afterwards `reported` sums up what that compilation reported."""

    earlier: tuple[GraphReport, ...] = field(default_factory=lambda: last_reports())

    def reported(self) -> Reported:
        """What was reported since."""
        known = {id(report) for report in self.earlier}
        return summarise([report for report in last_reports() if id(report) not in known])


def listen(work: Callable[[], object]) -> Reported:
    """Run `work`, which compiles something, and return what was reported meanwhile."""
    listener = Listener()
    work()
    return listener.reported()


def summarise(reports: Sequence[GraphReport]) -> Reported:
    """Plans and seconds of several graphs, the costs added up."""
    if not reports:
        return Reported()
    plans = [report.plan for report in reports]
    edits = [edit for plan in plans for edit in plan.edits]
    dense = sum(plan.dense_cost for plan in plans)
    return Reported(
        share=sum(plan.planned_cost for plan in plans) / dense if dense else None,
        own_s=sum(report.seconds for report in reports),
        distinct_levels=len({edit.level for edit in edits}),
        edits=tuple(edit_text(edit) for edit in edits),
        layers=tuple(
            f"{row.layer}: {row.tokens_in} -> {row.tokens_out}"
            for report in reports
            for row in report.layers
        ),
        trouble=tuple(report.cause for report in reports if report.outcome == "fallback"),
    )
