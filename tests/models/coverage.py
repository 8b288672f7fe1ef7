"""Writes `docs/coverage.md`: `python -m tests.models.coverage [--jobs 2] [family ...]`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
HEAD = """# What is edited, family by family

Made by `make zoo` from tiny random models (float64, eager lowering, objective flops): regions and
sites found, edits at budget 1.0 and at budget 0.5, and the largest relative L2 distance of any
output: at 1.0 to dense, at 0.5 to the slow reference of the same plan. Codes are explained in
[rejections.md](rejections.md); "whole" says whether the call is one graph.

| family | graphs | attention | MLPs | sites | at 1.0 | error | at 0.5 | flops | error | codes |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def row_of(name: str) -> str:
    """One line of the table, or what went wrong."""
    warnings.simplefilter("ignore")
    from tests.models.examine import examine
    from tests.models.zoo import FAMILIES

    try:
        row = examine(name, FAMILIES[name])
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).splitlines()[0][:160] if str(error) else ""
        return f"| {name} | failed: {type(error).__name__} at {last.name}: {text} |"
    graphs = str(row.graphs) + ("" if row.whole else ", broken")
    reference = "-" if row.reference_error is None else f"{row.reference_error:.0e}"
    cells = (
        name,
        graphs,
        str(row.attention),
        str(row.mlps),
        str(row.sites),
        ", ".join(row.exact_edits) or "-",
        f"{row.exact_error:.0e}",
        ", ".join(row.edits) or "dense",
        f"{row.share:.2f}",
        reference,
        ", ".join(row.rejections) or "-",
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Examine every family (or those named) and write the page (or print their lines)."""
    from tests.models.zoo import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*", choices=[[], *FAMILIES])
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args(arguments)
    names = chosen.family or list(FAMILIES)
    lines = dict(examined(names, chosen.jobs))
    page = [lines[name] for name in names]
    if chosen.family:
        print("\n".join(page))
    else:
        PAGE.write_text(HEAD + "\n".join(page) + "\n", encoding="utf-8")
    failed = [line for line in page if "| failed:" in line]
    print(f"{len(page)} families, {len(failed)} failed", file=sys.stderr)
    return int(bool(failed))


def examined(names: Iterable[str], jobs: int) -> Iterable[tuple[str, str]]:
    """Lines as they come, several processes at work."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(row_of, name): name for name in names}
        for done in as_completed(waiting):
            print(done.result(), file=sys.stderr, flush=True)
            yield waiting[done], done.result()


if __name__ == "__main__":
    sys.exit(main())
