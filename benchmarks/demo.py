"""The main job: a pretrained sentence encoder, real prose, three budgets, `make demo`.

Every batch of passages goes through dense and the budgets in random order, one after the other:
the same calls give the embeddings and the paired speed ratios. Then the controls, pruning at the
same predicted cost, embed the same batches for their recall alone. When time runs short the batches
that are left are dropped: each line says how many passages it stands on, and its difference to
dense, or of merging to a control, is always taken on those.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from benchmarks.corpus import Passage, build_corpus, corpus_digest
from benchmarks.encoder import (
    BATCH,
    Encoder,
    embed_batch,
    embed_queries,
    load_encoder,
    passage_batches,
)
from benchmarks.machine import fingerprint
from benchmarks.quality import Quality, compare
from benchmarks.reported import Reported, listen
from benchmarks.timing import PairedRatio, summarise
from benchmarks.variants import (
    DENSE,
    Variant,
    compile_variant,
    pruning_variant,
    tokenpass_variant,
)

BUDGETS = (1.0, 0.75, 0.5)
CONTROLS = tuple(
    pruning_variant(policy, budget) for budget in (0.5, 0.75) for policy in ("random", "uniform")
)
SECONDS = 165.0
"""When to stop measuring, counted from the start: below three minutes with what follows."""
MAIN_SHARE = 0.85
"""The share of that time by which dense and the budgets stop, so that the controls get some."""
EXACT_EVERY = 4
"""Budget 1.0 changes no embedding: every fourth batch shows its speed and that this is so."""
WIDTH = 100
"""Columns where the output is no terminal."""
RESULT = Path(__file__).resolve().parent / "results" / "demo.json"
Embed = Callable[[Tensor], Tensor]


@dataclass
class Track:
    """One variant: how it embeds a batch, what was reported, and what its batches gave."""

    variant: Variant
    embed: Embed
    reported: Reported
    every: int = 1
    embeddings: dict[int, Tensor] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def embedded(self, done: Sequence[int]) -> Tensor:
        """Unit vectors [passages, width] of the batches `done`, in that order."""
        return torch.cat([self.embeddings[i] for i in done])

    def run(self, index: int, batch: Tensor) -> None:
        """Embed one batch and keep the result and its time."""
        started = time.perf_counter()
        self.embeddings[index] = self.embed(batch).clone()
        self.seconds[index] = time.perf_counter() - started


@dataclass(frozen=True)
class Row:
    """One line of the result, on the passages that this variant has embedded.

    A budget has a speed-up from paired batches, a control has `merging`: the quality of the
    default passes at the same budget, its difference taken to this control.
    """

    variant: Variant
    reported: Reported
    quality: Quality
    speedup: PairedRatio | None = None
    merging: Quality | None = None


def start_track(encoder: Encoder, variant: Variant, batch: Tensor) -> Track:
    """Compile a variant by its first batch; neither that call nor its time counts."""
    compiled = compile_variant(encoder.model, variant)

    def embed(input_ids: Tensor) -> Tensor:
        return embed_batch(compiled, input_ids)

    reported = listen(lambda: embed(batch))
    return Track(variant, embed, reported, EXACT_EVERY if variant.budget == 1.0 else 1)


def run_batches(
    tracks: Sequence[Track],
    batches: Sequence[Tensor],
    *,
    deadline: float,
    step: Callable[[], object],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Give batches to the tracks whose turn it is, in random order, until the deadline."""
    order = random.Random(0)
    indices = list(range(len(batches)))
    order.shuffle(indices)  # what a deadline leaves is a random part of the corpus
    for place, index in enumerate(indices):
        if place and clock() > deadline:
            return
        turn = [track for track in tracks if place % track.every == 0]
        for track in order.sample(turn, len(turn)):
            track.run(index, batches[index])
        step()


def budget_row(dense: Track, track: Track, queries: Tensor) -> Row:
    """Speed and quality of a budget (or of dense itself) beside dense."""
    done = sorted(track.embeddings)
    speedup = summarise([dense.seconds[i] for i in done], [track.seconds[i] for i in done])
    quality = compare(own_queries(queries, done), dense.embedded(done), track.embedded(done))
    return Row(track.variant, track.reported, quality, speedup=speedup)


def control_row(dense: Track, budgets: Sequence[Track], track: Track, queries: Tensor) -> Row:
    """Quality of a control beside dense, and of merging at the same budget beside the control."""
    done = sorted(set(track.embeddings) & set(dense.embeddings))
    wanted, control = own_queries(queries, done), track.embedded(done)
    merging = next(one for one in budgets if one.variant.budget == track.variant.budget)
    return Row(
        track.variant,
        track.reported,
        compare(wanted, dense.embedded(done), control),
        merging=compare(wanted, control, merging.embedded(done)),
    )


def own_queries(queries: Tensor, done: Sequence[int]) -> Tensor:
    """The queries that belong to the passages of some batches; all batches are full."""
    return torch.cat([queries[i * BATCH : (i + 1) * BATCH] for i in done])


def demonstrate(seconds: float, passages: int | None, progress: Progress) -> dict[str, Any]:
    """Build the corpus, compile dense and all variants, run, and compare."""
    started = time.monotonic()
    task = progress.add_task("reading the standard library", total=None)
    encoder = load_encoder()
    corpus = build_corpus(encoder.tokenizer, limit=passages)
    corpus = corpus[: len(corpus) // BATCH * BATCH]  # one more shape would be one more compile
    batches = passage_batches(corpus)

    def compile_all(variants: Iterable[Variant]) -> list[Track]:
        tracks: list[Track] = []
        for variant in variants:
            progress.update(task, description=f"compiling {variant.name}")
            tracks.append(start_track(encoder, variant, batches[0]))
            progress.advance(task)
        return tracks

    def run(tracks: Sequence[Track], by: float) -> None:
        names = ", ".join(track.variant.name for track in tracks)
        progress.update(task, description=f"{len(corpus)} passages: {names}")
        run_batches(tracks, batches, deadline=by, step=lambda: progress.advance(task))

    progress.update(task, total=1 + len(BUDGETS) + len(CONTROLS) + 3 * len(batches))
    with torch.no_grad():
        queries = embed_queries(encoder, [passage.query for passage in corpus])
        dense, *budgets = compile_all([DENSE, *map(tokenpass_variant, BUDGETS)])
        run([dense, *budgets], started + MAIN_SHARE * seconds)
        torch.compiler.reset()  # Dynamo keeps eight variants of one function, and no more
        controls = compile_all(CONTROLS)
        for budget in dict.fromkeys(one.variant.budget for one in controls):
            run([one for one in controls if one.variant.budget == budget], started + seconds)
    table = [budget_row(dense, track, queries) for track in (dense, *budgets)]
    table += [control_row(dense, budgets, track, queries) for track in controls]
    return {
        "corpus": describe(corpus),
        "rows": [asdict(row) for row in table],
        "seconds": time.monotonic() - started,
    }


def describe(corpus: Sequence[Passage]) -> Mapping[str, Any]:
    """Size and fingerprint of the corpus: its texts differ from one Python version to the next."""
    return {"passages": len(corpus), "digest": corpus_digest(corpus)}


def results_tables(result: Mapping[str, Any]) -> tuple[Table, Table]:
    """Dense and the budgets, then the controls; one line for each variant."""
    rows = result["rows"]
    budgets = results_table(
        f"all-MiniLM-L6-v2, {result['corpus']['passages']} passages of 256 tokens, batch {BATCH}",
        "cost: predicted share of dense; gain: recall@1 less dense's, in points; intervals 95 %",
        ("speed-up", "gain"),
        [row for row in rows if row["merging"] is None],
    )
    controls = results_table(
        "Pruning at the same predicted cost",
        "merging: how much more the default passes find, recall@1 in points",
        ("gain", "merging"),
        [row for row in rows if row["merging"] is not None],
    )
    return budgets, controls


def results_table(
    title: str, caption: str, last: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> Table:
    """One line for each variant, with the columns that all have and some `last` ones."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("variant", "texts", "cost", "R@1", "R@5", "cosine", *last):
        table.add_column(name, no_wrap=True)
    for row in rows:
        quality, share = row["quality"], row["reported"]["share"]
        cells = last_cells(row)
        table.add_row(
            row["variant"]["name"],
            str(quality["passages"]),
            f"{share:.2f}" if share else "-",
            f"{quality['recall_at_1']:.3f}",
            f"{quality['recall_at_5']:.3f}",
            f"{quality['cosine']:.3f}",
            *(cells[name] for name in last),
        )
    return table


def last_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """What only some lines have, with intervals; dense is compared with nothing."""
    speed, dense = row["speedup"], row["variant"]["budget"] is None
    return {
        "speed-up": f"{speed['speedup']:.2f} {interval(speed, '.2f')}"
        if speed and not dense
        else "-",
        "gain": "-" if dense else difference(row["quality"]),
        "merging": difference(row["merging"]) if row["merging"] else "-",
    }


def difference(quality: Mapping[str, Any]) -> str:
    """A difference of recalls with its interval, in points."""
    points = {name: 100 * quality[name] for name in ("difference", "low", "high")}
    return f"{points['difference']:+.1f} {interval(points, '+.1f')}"


def interval(bounds: Mapping[str, float], form: str) -> str:
    """An interval in brackets, which rich would else take for a style."""
    return rf"\[{bounds['low']:{form}}, {bounds['high']:{form}}]"


def plan_table(result: Mapping[str, Any]) -> Table:
    """The edits of every variant that has some, with the tokens into and out of each layer."""
    table = Table("variant", "edits", "layer: tokens in -> out", title="Plans", show_lines=True)
    for row in result["rows"]:
        reported = row["reported"]
        lines = [*reported["edits"], *(f"compiled dense: {why}" for why in reported["trouble"])]
        if lines:
            table.add_row(row["variant"]["name"], "\n".join(lines), "\n".join(reported["layers"]))
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="stop measuring after")
    parser.add_argument("--passages", type=int, help="use that many passages instead of all")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}")
    chosen = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TextColumn(""))
    with Progress(*columns, console=console) as progress:
        result = demonstrate(chosen.seconds, chosen.passages, progress)
    console.print(plan_table(result))
    for table in results_tables(result):
        console.print(table)
    console.print(f"{result['seconds']:.0f} seconds; above 1 is faster than torch.compile(model)")
    if chosen.save:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps({"machine": fingerprint()} | result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
