"""What the command shows, as rich tables: reports, device profiles, codes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tokenpass.bundle import Bundle, Outcome
from tokenpass.cost.device import DeviceProfile
from tokenpass.cost.rates import RateTable
from tokenpass.edits import Rejection
from tokenpass.explanation import Explanation
from tokenpass.ops.cost_record import Work
from tokenpass.report import HEAD, TO_THE_RIGHT, GraphReport, edit_text, headline, layer_cells, unit


def explanation(told: Explanation) -> RenderableType:
    """Every graph of a call."""
    if not told.graphs:
        return Text(str(told))
    count = len(told.graphs)
    parts: list[RenderableType] = []
    for at, graph in enumerate(told.graphs, 1):
        if count > 1:
            parts.append(Text(f"graph {at} of {count}", style="bold"))
        parts.append(report(graph))
    return Group(*parts)


def kernels(told: Explanation) -> RenderableType:
    """Every generated kernel of a call, with its source and the calls that it serves."""
    parts: list[RenderableType] = []
    for use in dict.fromkeys(use for uses in told.kernels for use in uses):
        parts.append(Text(use.name, style="bold"))
        parts.append(Text(f"serves {', '.join(use.nodes)}" + where(use.modules), style="dim"))
        if use.source:
            language = "cpp" if use.template.startswith("cpp") else "python"
            parts.append(Syntax(use.source, language, word_wrap=True, background_color="default"))
        else:
            parts.append(Text(f"the reference runs: {use.because}"))
    return Group(*(parts or [Text("no generated kernels: the graph has none of our operators")]))


def where(modules: Iterable[str]) -> str:
    """The modules that a kernel serves, if any are known."""
    named = ", ".join(modules)
    return f" in {named}" if named else ""


def report(graph: GraphReport) -> RenderableType:
    """One graph: what happened, its layers, its edits, and what was left alone."""
    style = {"edited": "bold green", "fallback": "bold red"}.get(graph.outcome, "bold")
    parts: list[RenderableType] = [Text(headline(graph), style=style)]
    if graph.device:
        parts.append(Text(f"device profile: {graph.device}", style="dim"))
    if graph.layers:
        parts.append(layers(graph))
    parts += listed("edits", [edit_text(edit) for edit in graph.plan.edits])
    if graph.packed_bytes:
        parts += listed("second copies of weights", [f"{graph.packed_bytes / 1e6:.1f} MB"])
    parts += listed("notes", graph.plan.notes)
    parts += left_alone(graph.rejections)
    if graph.unknown:
        parts += listed("costed by bytes alone", graph.unknown)
    return Group(*parts)


def layers(graph: GraphReport) -> Table:
    """Tokens and costs of each layer."""
    _, name = unit(graph.plan)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for at, head in enumerate(HEAD):
        title = f"{head} {name}" if head in ("dense", "planned") else head
        right = at in TO_THE_RIGHT
        fold = "fold" if head == "module" else "ellipsis"
        table.add_column(title, justify="right" if right else "left", no_wrap=right, overflow=fold)
    rows = layer_cells(graph)
    for at, row in enumerate(rows):
        changed = row[2] != row[3]
        style = "bold" if at == len(rows) - 1 else "green" if changed else ""
        table.add_row(*row, style=style, end_section=at == len(rows) - 3)
    return table


def listed(title: str, lines: Iterable[str]) -> list[RenderableType]:
    """A title and its lines, indented; nothing where there are none."""
    found = list(lines)
    if not found:
        return []
    return [Text(title, style="bold"), *(indented(Text(line), 2) for line in found)]


def indented(line: Text, by: int) -> Padding:
    """A line, wrapped where it is long."""
    return Padding(line, (0, 0, 0, by), expand=False)


def left_alone(rejections: Iterable[Rejection]) -> list[RenderableType]:
    """Reasons, each with the places that it holds for."""
    groups: dict[tuple[str, str, str], list[Rejection]] = {}
    for found in rejections:
        groups.setdefault((found.code, found.because, found.hint), []).append(found)
    if not groups:
        return []
    parts: list[RenderableType] = [Text("left alone", style="bold")]
    for (code, because, hint), places in groups.items():
        line = Text.assemble((code, "yellow"), f": {because}", (f" ({hint})" if hint else "", ""))
        parts.append(indented(line, 2))
        shown = [f"{p.where}{' at ' + short(p.source) if p.source else ''}" for p in places[:3]]
        more = len(places) - len(shown)
        shown += [f"and {more} more"] if more else []
        parts += [indented(Text(line, style="dim"), 4) for line in shown]
    return parts


def short(source: str) -> str:
    """A source line without the folder that Python imports from, so that it fits on a line."""
    folders = [str(Path(folder or ".").resolve()) + "/" for folder in [*sys.path, ""]]
    inside = [folder for folder in folders if source.startswith(folder)]
    return source.removeprefix(max(inside, key=len, default=""))


def profile(measured: DeviceProfile) -> Table:
    """The best rates of a device, and what a call costs."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=measured.name, title_justify="left")
    table.add_column("rate")
    table.add_column("dtype")
    table.add_column("best", justify="right")
    table.add_column("unit")
    tables: dict[str, tuple[Mapping[str, RateTable], str]] = {
        "matrix product": (measured.gemm_gflop_per_s, "GFLOP/s"),
        "batched product": (measured.bmm_gflop_per_s, "GFLOP/s"),
        "convolution": (measured.conv_gflop_per_s, "GFLOP/s"),
        "attention": (measured.attention_gflop_per_s, "GFLOP/s"),
        "masked attention": (measured.masked_attention_gflop_per_s, "GFLOP/s"),
    }
    for name, (rates, kind) in tables.items():
        for dtype, rate in rates.items():
            table.add_row(name, dtype, f"{max(rate.values):,.1f}", kind)
    own: dict[Work, str] = {"few_rows": "product of few rows", "listed_rows": "sparse product"}
    for work, name in own.items():
        for dtype, rate in measured.weight_gb_per_s.get(work, {}).items():
            table.add_row(name, dtype, f"{max(rate.values):,.1f}", "GB/s of weight")
    table.add_row("bandwidth", "", f"{max(measured.bandwidth_gb_per_s.values):,.1f}", "GB/s")
    table.add_row("kernel launch", "", f"{measured.launch_us:.2f}", "us")
    if measured.kernel_launch_us is not None:
        table.add_row("launch of our own", "", f"{measured.kernel_launch_us:.2f}", "us")
    table.add_row("call of the graph", "", f"{measured.call_us:.2f}", "us")
    return table


def replayed(bundle: Bundle, outcome: Outcome) -> RenderableType:
    """What a bundle was saved for, and the distances that it gives now."""
    parts: list[RenderableType] = []
    for key in ("stage", "message"):
        if key in bundle.about:
            parts.append(Text(f"saved with {key}: {bundle.about[key]}"))
    if outcome.to_reference is None:
        return Group(*parts, Text("nothing is edited: the graph runs dense"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("relative distance")
    table.add_column("largest", justify="right")
    table.add_row("edited to its reference", f"{outcome.to_reference:.2e}")
    table.add_row("edited to dense", f"{outcome.to_dense:.2e}")
    table.add_row("reference to dense", f"{outcome.reference_to_dense:.2e}")
    parts.append(table)
    if outcome.barriers:
        parts.append(Text("a barrier inside a block: means are taken at other places there"))
    verdict = "they agree" if outcome.agrees else "edited graph and reference differ"
    style = "bold green" if outcome.agrees else "bold red"
    told = f"{verdict} ({outcome.edits} edits, at most {outcome.tolerance:.0e} expected)"
    return Group(*parts, Text(told, style=style))


def codes(known: Mapping[str, tuple[str, str]]) -> Table:
    """Rejection codes with their meaning and what helps."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("code", no_wrap=True)
    table.add_column("meaning")
    table.add_column("what helps")
    for code, (meaning, hint) in known.items():
        table.add_row(code, meaning, hint)
    return table


def saved(console: Console, what: str, path: Path) -> None:
    """Say where something was written, without breaking the path."""
    console.print(Text(f"{what}: {path}"), soft_wrap=True)
