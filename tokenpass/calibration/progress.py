"""How far calibration is, on standard error: a bar where rich is installed, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Told = Callable[[int, int | None], None]
"""Called with what is done and, where it is known, of how many."""


@contextmanager
def progress_of(what: str, *, shown: bool) -> Iterator[Told]:
    """Show how far something is."""
    if not shown:
        yield lambda done, total: None
        return
    bar = rich_bar()
    if bar is None:
        yield lambda done, total: say(f"{what} {done}" + ("" if total is None else f" of {total}"))
        return
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def rich_bar() -> Any:
    """A progress bar of rich; None where it is not installed."""
    try:
        from rich.console import Console  # noqa: PLC0415 - an optional package
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )
    except ModuleNotFoundError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def say(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"tokenpass: {text}\n")
    sys.stderr.flush()
