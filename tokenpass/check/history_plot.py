"""History as a picture: a panel for each case, the measured ratio beside the predicted one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenpass.check.history import CaseEntry, Entry
from tokenpass.check.written import clean
from tokenpass.errors import ConfigError, UserError

COLUMNS = 3
PANEL_INCHES = (3.4, 2.0)
MEASURED, PREDICTED, BAD = "#1b6ca8", "#8a8a8a", "#c62828"
STATIC: Any = {"svg.fonttype": "none", "svg.hashsalt": "tokenpass"}
"""Text stays text, and the same history gives the same file."""


def plot(entries: Sequence[Entry], path: Path) -> None:
    """Draw all cases of a history as SVG.

    Raises `UserError` without matplotlib or without runs, `ConfigError` where the file cannot be
    written.
    """
    if not entries:
        raise UserError("--plot: the history has no runs yet")
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an optional package
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UserError("--plot needs matplotlib; run: pip install 'tokenpass[report]'") from error
    names = list(dict.fromkeys(name for entry in entries for name in entry.cases))
    rows = -(-len(names) // COLUMNS)
    columns = min(len(names), COLUMNS)
    with mpl.rc_context(STATIC):
        figure = Figure((PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.5))
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for at, axes in enumerate(panels.flat):
            if at < len(names):
                draw(axes, clean(names[at]), [entry.cases.get(names[at]) for entry in entries])
            else:
                axes.set_visible(False)
        label_runs(panels, entries, len(names))
        figure.legend(*legend(panels), loc="upper center", ncols=3, frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
        try:
            figure.savefig(path, format="svg", metadata={"Date": None})
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error}") from error


def draw(axes: Any, name: str, cases: Sequence[CaseEntry | None]) -> None:
    """One case: its predicted ratio as a line, measured ones with their intervals."""
    predicted = [1 / case.share if case and case.share else float("nan") for case in cases]
    axes.plot(predicted, color=PREDICTED, drawstyle="steps-mid", linewidth=1, label="predicted")
    timed = [
        (at, case.speedup, case.speedup - case.low, case.high - case.speedup)
        for at, case in enumerate(cases)
        if case and case.speedup and case.low and case.high
    ]
    if timed:
        at, ratio, below, above = zip(*timed, strict=True)
        axes.errorbar(
            at, ratio, (below, above), color=MEASURED, fmt="o-", markersize=3, linewidth=1,
            label="measured",
        )  # fmt: skip
    bad = [at for at, case in enumerate(cases) if case and case.status not in ("passed", "skipped")]
    axes.plot(
        bad, [0.02] * len(bad), "x", color=BAD, label="not passed",
        transform=axes.get_xaxis_transform(), clip_on=False,
    )  # fmt: skip
    axes.set_title(name, fontsize=8, loc="left", parse_math=False)
    axes.tick_params(labelsize=7)
    axes.margins(x=0.05, y=0.2)
    axes.grid(axis="y", linewidth=0.3)


def label_runs(panels: Any, entries: Sequence[Entry], count: int) -> None:
    """Dates below the lowest panel of each column, and a name of the other axis."""
    marks = sorted({0, len(entries) // 2, len(entries) - 1})
    rows, columns = panels.shape
    for column in range(columns):
        row = (count - 1 - column) // columns
        axes = panels[min(row, rows - 1), column]
        axes.set_xticks(marks, [f"{entries[at].date:%Y-%m-%d}" for at in marks])
        axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel("dense / ours", fontsize=7)


def legend(panels: Any) -> tuple[list[Any], list[str]]:
    """Every kind of mark once."""
    found = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    return list(found.values()), list(found)
