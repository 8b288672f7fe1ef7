"""What was done with each graph, and why: what explain, logs and benchmarks read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tokenpass.edits import Edit, Plan, Rejection

KEPT = 64


@dataclass(frozen=True)
class LayerRow:
    """One attention layer: tokens coming in and going out, and its cost dense and planned."""

    layer: int
    name: str
    tokens_in: str
    tokens_out: str
    dense_cost: float
    planned_cost: float
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class GraphReport:
    """One graph. `outcome`: `edited`, `dense` (nothing to gain or nothing to edit), `fallback`.

    `seconds` is tokenpass's own share of the compile time; `device` names the profile used.
    """

    outcome: str
    plan: Plan
    device: str = ""
    layers: tuple[LayerRow, ...] = ()
    outside_dense: float = 0.0
    outside_planned: float = 0.0
    unknown: tuple[str, ...] = ()
    seconds: float = 0.0
    plan_yaml: str = ""
    cause: str = ""

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """Everything that was left alone, with reasons."""
        return self.plan.rejections

    @property
    def predicted_speedup(self) -> float:
        """Dense cost over planned cost."""
        share = self.plan.share
        return 1 / share if share else 1.0


class Log:
    """The newest reports, oldest first; the one thing that lives between compilations."""

    def __init__(self) -> None:
        self._kept: deque[GraphReport] = deque(maxlen=KEPT)

    def add(self, report: GraphReport) -> None:
        """Remember a report."""
        self._kept.append(report)

    def all(self) -> tuple[GraphReport, ...]:
        """The reports so far."""
        return tuple(self._kept)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


LOG = Log()


def last_reports() -> tuple[GraphReport, ...]:
    """Reports of the graphs compiled since the last reset, oldest first."""
    return LOG.all()


def unit(objective: str) -> tuple[float, str]:
    """Scale and unit to show a cost in."""
    return (1e3, "ms") if objective == "latency" else (1e-9, "GFLOP")


def text(report: GraphReport) -> str:
    """A report as plain text, for logs and `explain`."""
    plan = report.plan
    scale, name = unit(plan.objective)
    lines = [
        f"tokenpass: {report.outcome}, budget {plan.budget:g}, predicted cost {plan.share:.3f} of "
        f"dense ({plan.planned_cost * scale:.3f} of {plan.dense_cost * scale:.3f} {name}), "
        f"estimated error {plan.error:.3g}"
    ]
    if report.device:
        lines.append(f"device profile: {report.device}")
    if report.cause:
        lines.append(f"cause: {report.cause}")
    lines += table(report, scale, name)
    lines += [f"edit: {edit_text(edit)}" for edit in plan.edits]
    lines += [f"note: {note}" for note in plan.notes]
    lines += [f"left alone: {line}" for line in grouped(plan.rejections)]
    if report.unknown:
        lines.append(f"costed by bytes alone: {', '.join(report.unknown)}")
    return "\n".join(lines)


def edit_text(edit: Edit) -> str:
    """One edit on one line."""
    policy = f"/{edit.policy}" if edit.policy else ""
    return f"{edit.pass_name}{policy} at {edit.site} keeps {edit.level}"


def table(report: GraphReport, scale: float, name: str) -> list[str]:
    """Layers as aligned rows."""
    if not report.layers:
        return []
    head = ("layer", "module", "tokens in", "tokens out", f"dense {name}", f"planned {name}")
    rows = [
        (
            str(row.layer),
            row.name,
            row.tokens_in,
            row.tokens_out,
            f"{row.dense_cost * scale:.3f}",
            f"{row.planned_cost * scale:.3f}",
        )
        for row in report.layers
    ]
    outside = (report.outside_dense * scale, report.outside_planned * scale)
    rows.append(("-", "(outside)", "", "", f"{outside[0]:.3f}", f"{outside[1]:.3f}"))
    return aligned([head, *rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows padded to the widest entry of each column."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]


def grouped(rejections: Iterable[Rejection]) -> list[str]:
    """Rejections with one reason shown once, with the number of places."""
    count: dict[tuple[str, str], list[Rejection]] = {}
    for rejection in rejections:
        count.setdefault((rejection.code, rejection.because), []).append(rejection)
    lines = []
    for found in count.values():
        more = f" and {len(found) - 1} more places" if len(found) > 1 else ""
        lines.append(f"{found[0]}{more}")
    return lines


def without_sources(report: GraphReport) -> GraphReport:
    """The report without paths of the user's files (to share or to compare)."""
    clean = tuple(replace(r, source="") for r in report.plan.rejections)
    return replace(report, plan=replace(report.plan, rejections=clean))
