"""The commands of `tokenpass`: explain, calibrate, check, device, plan check, replay, codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from tokenpass import __version__
from tokenpass.bundle import load_bundle
from tokenpass.bundle import replay as replay_bundle
from tokenpass.calibration import calibrate as calibrate_model
from tokenpass.cli import tables
from tokenpass.cli.check import check
from tokenpass.cli.consoles import err, out
from tokenpass.cli.target import load_model, load_target, load_value, told
from tokenpass.cost.device import cached_profile_path
from tokenpass.cost.measure import measure
from tokenpass.edits import REJECTION_CODES
from tokenpass.errors import TokenpassError, UserError
from tokenpass.explanation import explain as explain_call
from tokenpass.lower.kernel_cases import kernel_cases
from tokenpass.options import read_options

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Spend only the share of a transformer's cost that you name.",
    pretty_exceptions_enable=False,
)
plan = typer.Typer(no_args_is_help=True, help="Work with pass-config and plan files.")
app.add_typer(plan, name="plan")
app.command()(check)


def run() -> None:
    """The command; what a user can repair is one message and exit code 2."""
    try:
        app(prog_name="tokenpass")
    except UserError as error:
        fail(str(error))
    except TokenpassError as error:
        fail(f"internal error, please report it: {error}", 1)
    except BrokenPipeError:
        sys.exit(1)


def fail(message: str, status: int = 2) -> NoReturn:
    """One message on standard error, and out."""
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(status)


def show_version(asked: bool) -> None:
    """Print the versions that a report of a defect needs."""
    if asked:
        out.print(f"tokenpass {__version__} (torch {torch.__version__})", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Versions.")
    ] = False,
) -> None:
    """Spend only the share of a transformer's cost that you name."""


@app.command()
def explain(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="What gives (model, args) or (model, args, kwargs), or a function that returns "
            "it; FILE.py:NAME works too. **The code is imported and run**, and the model is called "
            "once, eagerly.",
        ),
    ],
    budget: Annotated[
        str | None, typer.Option(help='Share of the dense cost: 0.5, or "50%".')
    ] = None,
    max_error: Annotated[float | None, typer.Option(help="Bound on the estimated error.")] = None,
    flops: Annotated[bool, typer.Option("--flops", help="Count arithmetic, not time.")] = False,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A pass-config or plan file.")
    ] = None,
    device_profile: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="A device profile.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan here.")] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Print the sources of the generated kernels too.")
    ] = False,
) -> None:
    """Plan a model without compiling it, and tell every edit and every reason."""
    options: dict[str, Any] = {
        "budget": None if budget is None else number(budget),
        "max_error": max_error,
        "objective": "flops" if flops else None,
        "config": config,
        "device_profile": device_profile,
    }
    options = {key: value for key, value in options.items() if value is not None}
    read_options(options)  # before anything is imported
    with err.status("loading the model"):
        found = load_target(target)
    with err.status("planning"), torch.no_grad():
        try:
            explanation = explain_call(found.model, *found.args, options=options, **found.kwargs)
        except TokenpassError:
            raise
        except Exception as error:
            raise UserError(f"calling the model raised {told(error)}") from error
    out.print(tables.explanation(explanation))
    if kernels:
        out.print(tables.kernels(explanation))
    if save is not None:
        explanation.save_plan(save)
        tables.saved(out, "plan written", save)


def number(text: str) -> int | float | str:
    """A budget as Python would have it: a number, or the text with its percent sign."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


@app.command()
def calibrate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="The model in eval mode, or a function that returns it; FILE.py:NAME works too. "
            "**The code is imported and run.**",
        ),
    ],
    batches: Annotated[
        str,
        typer.Option(
            metavar="MODULE:NAME",
            help="An iterable of batches (a mapping, a tuple, or one input), or a function that "
            "returns it.",
        ),
    ],
    path: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="The file; one that is there is gone on with."),
    ],
    sensitivity: Annotated[
        bool, typer.Option(help="Measure how much each projection's error changes the output.")
    ] = True,
) -> None:
    """Run a model on batches and keep what lossy edits need to know of its activations."""
    with err.status("loading the model"):
        model = load_model(target)
        given = load_value(batches)
    try:
        found = calibrate_model(model, given, path=path, sensitivity=sensitivity)
    except TokenpassError:
        raise
    except Exception as error:
        raise UserError(f"calling the model raised {told(error)}") from error
    out.print(
        Text(f"{len(found.sites)} projections, {found.batches} batches, {found.tokens} tokens"),
        soft_wrap=True,
    )
    tables.saved(out, "calibration written", path)
    out.print(Text(f"use it with options={{'calibration': '{path}'}}"), soft_wrap=True)


@app.command()
def device(
    name: Annotated[str | None, typer.Option("--device", help="cpu or cuda.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 45.0,
    path: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to write, instead of the user's cache."),
    ] = None,
) -> None:
    """Measure this device once, so that predictions are of this device."""
    try:
        chosen = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device: expected cpu or cuda, got {name!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: this PyTorch finds no CUDA device")
    bar = Progress(
        TextColumn("measuring {task.fields[what]:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=1.0, what=chosen.type)
        measured = measure(
            chosen,
            progress=lambda share, what: bar.update(task, completed=share, what=what),
            seconds=seconds,
            kernels=kernel_cases,
        )
    goal = path or cached_profile_path(chosen)
    measured.save(goal)
    out.print(tables.profile(measured))
    tables.saved(out, "profile written", goal)
    if path is not None:
        out.print(Text(f"use it with options={{'device_profile': '{path}'}}"), soft_wrap=True)


@plan.command("check")
def check_plan(file: Annotated[Path, typer.Argument(help="A pass-config or plan file.")]) -> None:
    """Check a file: every problem with its line."""
    config = read_options({"config": file})
    if config.edits is None:
        what = "a pass config; the planner decides"
    else:
        count = len(config.edits)
        what = f"a plan of {count} edit{'' if count == 1 else 's'} for graph {config.fingerprint}"
    out.print(Text(f"{file}: {what}"), soft_wrap=True)


@app.command()
def replay(
    bundle: Annotated[
        Path, typer.Argument(help="The folder of a replay bundle. **No code of it is run.**")
    ],
) -> None:
    """Run a saved graph dense, edited and by its plan's reference; exit code 1 if they differ."""
    loaded = load_bundle(bundle)
    try:
        outcome = replay_bundle(loaded)
    except UserError:
        raise
    except Exception as error:  # what the bundle was saved to show
        fail(f"{bundle}: replaying raised {told(error)}", 1)
    out.print(tables.replayed(loaded, outcome))
    if not outcome.agrees:
        raise typer.Exit(1)


@app.command()
def codes() -> None:
    """List the codes of reasons for which something is left alone."""
    out.print(tables.codes(REJECTION_CODES))
