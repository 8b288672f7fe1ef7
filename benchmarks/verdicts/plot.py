"""Draws how often a slow-down is found, missed or left open.

    python -m benchmarks.verdicts.plot

Bars are shares of the decisions that `replay` drew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.figure import Figure

from benchmarks.machine import ROOT
from benchmarks.verdicts.load import CONDITIONS
from benchmarks.verdicts.replay import RESULTS

TO = ROOT / "benchmarks" / "results" / "verdicts.svg"
VERDICTS = {"passed": "#2e7d32", "inconclusive": "#bdbdbd", "failed": "#c62828"}
STATIC: Any = {"svg.fonttype": "none", "svg.hashsalt": "tokenpass"}
TITLES = {"quiet": "quiet machine", "loaded": "a neighbour in bursts"}


def main(
    results: Annotated[Path, typer.Option(metavar="FILE")] = RESULTS,
    to: Annotated[Path, typer.Option(metavar="FILE.svg")] = TO,
) -> None:
    """Draw the replayed decisions."""
    found = json.loads(results.read_text())
    with mpl.rc_context(STATIC):
        figure = Figure((8, 3.4))
        panels = figure.subplots(1, len(CONDITIONS), sharey=True)
        for axes, condition in zip(panels, CONDITIONS, strict=True):
            rows = [row for row in found["rows"] if row["condition"] == condition]
            labels = [f"{row['slower']:.0%}" for row in rows]
            below = [0.0] * len(rows)
            for verdict, color in VERDICTS.items():
                shares = [100 * row["drawn"][verdict] for row in rows]
                axes.bar(labels, shares, bottom=below, color=color, label=verdict, width=0.7)
                below = [a + b for a, b in zip(below, shares, strict=True)]
            axes.set_title(TITLES[condition], fontsize=10)
            axes.set_xlabel("planted slow-down (tolerance 5%)")
        panels[0].set_ylabel("% of decisions")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False
        )
        figure.tight_layout(rect=(0, 0.08, 1, 1))
        figure.savefig(to, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    typer.run(main)
