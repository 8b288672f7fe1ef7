"""`tokenpass check`: a check file, its baseline, and what is told of both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from tokenpass.check import baseline as baselines
from tokenpass.check import check_file, written
from tokenpass.check import history as histories
from tokenpass.check.history_plot import plot as draw_history
from tokenpass.check.loading import Loader, LoadFailed
from tokenpass.check.outcome import Outcome
from tokenpass.check.running import How, Step, run
from tokenpass.cli import tables
from tokenpass.cli.check_start import STARTS, WORKFLOW, save
from tokenpass.cli.check_table import shown
from tokenpass.cli.consoles import err, out
from tokenpass.cli.target import load_attribute, load_target, load_value, told
from tokenpass.errors import UserError


def check(
    file: Annotated[
        str,
        typer.Argument(
            metavar="[FILE | init | workflow]",
            help="A check file. **What it names is imported and run.** `init` writes a first one, "
            f"`workflow` writes {WORKFLOW} for GitHub.",
        ),
    ] = check_file.NAME,
    target: Annotated[
        str | None, typer.Argument(metavar="[MODULE:NAME]", help="Of `init`: the model.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Instead of {baselines.NAME} beside the check file."),
    ] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write what is so now as the baseline.")
    ] = False,
    fail_on_improvement: Annotated[
        bool, typer.Option("--fail-on-improvement", help="A baseline that is too low fails too.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="CASE", help="This case alone; may be repeated.")
    ] = None,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Without: facts and outputs alone.")
    ] = True,
    time_limit: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Of the pairs of one case.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JUnit XML here.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add this run to a file of JSON lines.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw what --history holds by now.")
    ] = None,
) -> None:
    """Compare models with a baseline: plans and kernels exactly, outputs, and speed.

    Exit codes: 0 passed, 1 slower or a gate failed, 2 usage, 3 inconclusive, 4 outputs wrong,
    5 a model could not run.
    """
    if file in STARTS:
        return STARTS[file](target)
    if target is not None:
        raise UserError(f"check: unexpected {target!r}: only `init` takes a model")
    if plot is not None and history is None:
        raise UserError("check: --plot draws a history: name its file with --history")
    how = How(timing, time_limit, update_baseline, fail_on_improvement)
    asked = check_file.read_check_file(file).only(tuple(only or ()))
    path = baseline or Path(file).parent / baselines.NAME
    outcome = carried_out(asked, path, how, err if as_json else out)
    publish(outcome, as_json, junit)
    if history is not None:
        remember(outcome, Path(file).parent, history, plot)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def publish(outcome: Outcome, as_json: bool, junit: Path | None) -> None:
    """The outcome in every form that is asked for."""
    if as_json:
        out.file.write(written.as_json(outcome))
    else:
        out.print(shown(outcome))
    if junit is not None:
        save(junit, written.as_junit(outcome))
    on_github(outcome, printed=not as_json)


def carried_out(asked: check_file.CheckFile, path: Path, how: How, told_on: Console) -> Outcome:
    """Run the cases, and write the baseline where that is asked for."""
    known = before(asked, path, how)
    if known is None and not how.update:
        raise UserError(f"baseline: file not found: {path}; write it with --update-baseline")
    with progress() as tell:
        outcome, made = run(asked, known, how, LOADER, tell)
    if how.update and not outcome.interrupted:
        baselines.write_baseline(made, path)
        tables.saved(told_on, "baseline written", path)
    return outcome


def before(asked: check_file.CheckFile, path: Path, how: How) -> baselines.Baseline | None:
    """The baseline; where a file is none, an update of all cases writes it anew and says so."""
    try:
        return baselines.read_baseline(path)
    except baselines.NoBaseline as error:
        if not how.update or len(asked.cases) < len(asked.names):
            raise
        err.print(Text(f"{written.clean(str(error))}: done"), style="yellow", soft_wrap=True)
        return None


@contextmanager
def progress() -> Iterator[Callable[[Step], None]]:
    """A line on the terminal: which case, what is done for it, and the time that is left."""
    columns = (
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(bar_width=20),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as shown_on:
        task = shown_on.add_task("", total=None, visible=False)

        def tell(step: Step) -> None:
            left = "" if step.left_s is None else f", at most {step.left_s:.0f} s left"
            told = written.clean(f"{step.case}: {step.what}{left}")
            shown_on.update(task, total=step.cases, completed=step.done, visible=True)
            shown_on.update(task, description=told)

        yield tell


def as_loaded(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """A loader of the command line, whose errors are the check's."""

    def run_it(text: str) -> Any:
        try:
            return load(text)
        except UserError as error:
            raise LoadFailed(str(error)) from error

    return run_it


LOADER = Loader(as_loaded(load_target), as_loaded(load_value), as_loaded(load_attribute), told)


def remember(outcome: Outcome, folder: Path, history: Path, plot: Path | None) -> None:
    """Add a run to its history, and draw that."""
    histories.append(histories.entry_of(outcome, folder), history)
    if plot is None:
        return
    entries, notes = histories.read_history(history)
    for note in notes:
        err.print(Text(written.clean(note), style="dim"), soft_wrap=True)
    draw_history(entries, plot)


def on_github(outcome: Outcome, printed: bool) -> None:
    """Annotations and the step summary, where a workflow of GitHub runs."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    (out if printed else err).file.write(written.workflow_commands(outcome))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(written.summary(outcome))
