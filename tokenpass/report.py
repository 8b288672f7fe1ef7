"""What was done with each graph, and why: what explain, logs and benchmarks read."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
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

    `seconds` is tokenpass's own share of the compile time; `device` names the profile used;
    `exact`: no edit can lose anything; `goal` is what was asked for, e.g. `max_error 0.1`; `found`:
    what analysis recognised; `packed_bytes`: what second copies of weights take.
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
    exact: bool = True
    goal: str = ""
    found: tuple[str, ...] = ()
    packed_bytes: int = 0

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


def unit(plan: Plan) -> tuple[float, str]:
    """Scale and unit to show a plan's costs in, such that the dense cost is readable."""
    if plan.objective == "latency":
        return (1e3, "ms") if plan.dense_cost >= 1e-3 else (1e6, "us")
    if plan.objective == "memory":
        return 2**-20, "MiB"
    return (1e-9, "GFLOP") if plan.dense_cost >= 1e9 else (1e-6, "MFLOP")


def text(report: GraphReport) -> str:
    """A report as plain text, for logs and `explain`."""
    lines = [f"tokenpass: {headline(report)}"]
    if report.device:
        lines.append(f"device profile: {report.device}")
    lines += [f"found: {', '.join(report.found)}"] if report.found else []
    lines += table(report)
    lines += [f"edit: {edit_text(edit)}" for edit in report.plan.edits]
    if report.packed_bytes:
        lines.append(f"second copies of weights: {report.packed_bytes / 1e6:.1f} MB (pack_memory)")
    lines += [f"note: {note}" for note in report.plan.notes]
    lines += [f"left alone: {line}" for line in grouped(report.rejections)]
    if report.unknown:
        lines.append(f"costed by bytes alone: {', '.join(report.unknown)}")
    return "\n".join(lines)


def details(report: GraphReport) -> str:
    """What `text` shortens: every place that was left alone, and the plan as a file."""
    lines = [f"left alone: {rejection}" for rejection in report.rejections]
    return "\n".join([f"tokenpass took {report.seconds:.2f} s", *lines, report.plan_yaml.rstrip()])


def headline(report: GraphReport) -> str:
    """What happened to the graph, in one sentence."""
    plan = report.plan
    if report.outcome == "fallback":
        return f"dense, because tokenpass failed: {report.cause}"
    if not plan.dense_cost:
        return "dense, nothing was planned"
    goal = report.goal or f"budget {plan.budget:g}"
    scale, name = unit(plan)
    costs = f"{plan.planned_cost * scale:.4g} of {plan.dense_cost * scale:.4g} {name}"
    if report.outcome == "dense":
        return f"dense, {goal}, predicted {plan.dense_cost * scale:.4g} {name}"
    error = "exact" if report.exact else f"estimated error {plan.error:.3g}"
    return f"edited, {goal}, predicted cost {plan.share:.3f} of dense ({costs}), {error}"


def edit_text(edit: Edit) -> str:
    """One edit on one line."""
    if not edit.policy.isidentifier():  # an exact edit names the positions that are read
        return f"{edit.pass_name} at {edit.site} keeps {edit.level} (position {edit.policy})"
    if edit.site.rsplit(":", 1)[-1].startswith("projection"):
        return f"{edit.pass_name}/{edit.policy} at {edit.site} {left_out(edit.level)}"
    span = ", ".join(f"{start} to {stop - 1}" for start, stop in edit.span)
    among = f" (from positions {span})" if span else ""
    return f"{edit.pass_name}/{edit.policy} at {edit.site} keeps {edit.level}{among}"


def left_out(level: str) -> str:
    """What a projection does not read: a share of its entries, or those that are zero."""
    try:
        share = float(level)
    except ValueError:
        share = 1.0
    return f"leaves out {share:.1%}" if share < 1 else f"reads what is not zero of {level}"


HEAD = ("layer", "module", "tokens in", "tokens out", "dense", "planned", "share")
TO_THE_RIGHT = frozenset({0, 4, 5, 6})


def layer_cells(report: GraphReport) -> list[tuple[str, ...]]:
    """The rows of the layer table: each layer, what lies outside all, and the sum."""
    if not report.layers:
        return []
    scale, _ = unit(report.plan)

    def costs(dense: float, planned: float) -> tuple[str, str, str]:
        share = f"{planned / dense:.2f}" if dense else "-"
        return f"{dense * scale:.3f}", f"{planned * scale:.3f}", share

    rows: list[tuple[str, ...]] = [
        (
            str(row.layer),
            row.name,
            row.tokens_in,
            row.tokens_out,
            *costs(row.dense_cost, row.planned_cost),
        )
        for row in report.layers
    ]
    outside = costs(report.outside_dense, report.outside_planned)
    total = costs(report.plan.dense_cost, report.plan.planned_cost)
    return [*rows, ("", "(outside)", "", "", *outside), ("", "(all)", "", "", *total)]


def table(report: GraphReport) -> list[str]:
    """Layers as aligned rows."""
    rows = layer_cells(report)
    if not rows:
        return []
    _, name = unit(report.plan)
    head = [f"{cell} {name}" if cell in ("dense", "planned") else cell for cell in HEAD]
    return aligned([head, *rows], TO_THE_RIGHT)


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows padded to the widest entry of each column, those in `right` on their left."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]

    def padded(at: int, cell: str) -> str:
        return cell.rjust(widths[at]) if at in right else cell.ljust(widths[at])

    return ["  ".join(padded(at, cell) for at, cell in enumerate(row)).rstrip() for row in rows]


def grouped(rejections: Iterable[Rejection]) -> list[str]:
    """Rejections with one reason shown once, at the first place, with the number of the others."""
    count: dict[tuple[str, str], list[Rejection]] = {}
    for rejection in rejections:
        count.setdefault((rejection.code, rejection.because), []).append(rejection)
    lines = []
    for found in count.values():
        others = len(found) - 1
        more = f" (and {others} more place{'s' if others > 1 else ''})" if others else ""
        lines.append(f"{found[0]}{more}")
    return lines


def without_sources(report: GraphReport) -> GraphReport:
    """The report without paths of the user's files (to share or to compare)."""
    clean = tuple(replace(r, source="") for r in report.plan.rejections)
    return replace(report, plan=replace(report.plan, rejections=clean))
