"""The floors that results are held against, as data, and the check of a results file.

`python -m benchmarks.floors RESULTS.json [--check]` prints each floor with what was measured; with
`--check` a missed floor makes the exit code 1. What was not measured is said, never passed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

Result = Mapping[str, Any]
Outcome = Literal["met", "missed", "not measured"]
FEW_LEVELS = 4
"""Up to this many distinct token counts a plan has to compile nearly as fast as dense."""


@dataclass(frozen=True)
class Floor:
    """A bound on one number of every result whose case and budget fit.

    `metric` names a function in `METRICS`; `at_least` says which side of `bound` is good.
    """

    name: str
    metric: str
    bound: float
    at_least: bool
    cases: tuple[str, ...] = ("*",)
    budget: float | None = None

    def applies(self, result: Result) -> bool:
        """Whether this floor speaks about that result."""
        fits = any(fnmatchcase(result["case"], pattern) for pattern in self.cases)
        return fits and self.budget in (None, result["budget"])


@dataclass(frozen=True)
class Verdict:
    """One floor beside one measured number."""

    floor: Floor
    case: str
    value: float | None
    outcome: Outcome


def speedup(result: Result) -> float | None:
    """Dense time divided by tokenpass time."""
    return _number(result, "speedup", "speedup")


def dead_token_share(result: Result) -> float | None:
    """The measured speed-up as a share of what the dead tokens' flops allow."""
    measured, allowed = speedup(result), result.get("dead_token_speedup", 1.0)
    return measured / allowed if measured is not None and allowed > 1 else None


def prediction_error(result: Result) -> float | None:
    """How far the predicted speed-up lies from the measured one, as a share of the latter."""
    measured, share = speedup(result), result.get("predicted_share")
    return abs(1 / share / measured - 1) if measured and share else None


def compile_ratio(result: Result) -> float | None:
    """Processor time of compiling, divided by dense Inductor's."""
    ours = _number(result, "child", "compile_cpu_s")
    dense = _number(result, "dense_child", "compile_cpu_s")
    return ours / dense if ours is not None and dense else None


def compile_ratio_of_few(result: Result) -> float | None:
    """`compile_ratio` of plans with few distinct token counts."""
    levels = result.get("distinct_levels")
    return compile_ratio(result) if levels is not None and levels <= FEW_LEVELS else None


def own_seconds_of_12_layers(result: Result) -> float | None:
    """Seconds of tokenpass itself while compiling, scaled to 12 layers."""
    own = _number(result, "child", "own_s")
    return own * 12 / result["layers"] if own is not None else None


def memory_ratio(result: Result) -> float | None:
    """Peak bytes of tensors during a call, divided by dense Inductor's."""
    ours = _number(result, "child", "peak_tensor_mib")
    dense = _number(result, "dense_child", "peak_tensor_mib")
    return ours / dense if ours is not None and dense else None


def exact(result: Result) -> float | None:
    """1.0 where the output is as close to float64 as the design asks, 0.0 where it is not."""
    exactness = result.get("exactness")
    return float(exactness["holds"]) if exactness else None


METRICS = {
    function.__name__: function
    for function in (
        speedup,
        dead_token_share,
        prediction_error,
        compile_ratio,
        compile_ratio_of_few,
        own_seconds_of_12_layers,
        memory_ratio,
        exact,
    )
}
HALVED = ("vit_b_224_b8", "vit_l_384_b1", "minilm_256_b8")
FLOORS: tuple[Floor, ...] = (
    Floor("halved cost pays", "speedup", 1.75, True, HALVED, 0.5),
    Floor("nothing lost at full budget", "speedup", 0.98, True, budget=1.0),
    Floor("dead tokens pay", "dead_token_share", 0.97, True, ("vit_*", "llama_*"), 1.0),
    Floor("small graphs never worse", "speedup", 0.97, True, ("vit_s_224_b1",)),
    Floor("prediction", "prediction_error", 0.15, False),
    Floor("compile time, few counts", "compile_ratio_of_few", 1.5, False),
    Floor("compile time", "compile_ratio", 2.5, False),
    Floor("own compile seconds", "own_seconds_of_12_layers", 3.0, False),
    Floor("peak memory", "memory_ratio", 1.0, False),
    Floor("exact at full budget", "exact", 1.0, True, budget=1.0),
)
MEDIAN_PREDICTION = Floor("median prediction", "prediction_error", 0.08, False)


def judge(results: Iterable[Result]) -> Iterator[Verdict]:
    """Every floor beside every result that it speaks about, then the median over all."""
    results = list(results)
    for floor in FLOORS:
        for result in results:
            if floor.applies(result):
                value = METRICS[floor.metric](result)
                if value is None and not _measurable(floor, result):
                    continue
                yield verdict(floor, f"{result['case']} @ {result['budget']:g}", value)
    errors = [error for result in results if (error := prediction_error(result)) is not None]
    yield verdict(MEDIAN_PREDICTION, "all", statistics.median(errors) if errors else None)


def verdict(floor: Floor, case: str, value: float | None) -> Verdict:
    """One number beside one floor."""
    if value is None:
        return Verdict(floor, case, None, "not measured")
    good = value >= floor.bound if floor.at_least else value <= floor.bound
    return Verdict(floor, case, value, "met" if good else "missed")


def print_verdicts(verdicts: Iterable[Verdict], console: Console) -> None:
    """A table with a line for each verdict."""
    table = Table(title="Floors")
    for column in ("floor", "case", "bound", "measured", "outcome"):
        table.add_column(column)
    colours = {"met": "green", "missed": "red", "not measured": "yellow"}
    for one in verdicts:
        side = ">=" if one.floor.at_least else "<="
        value = "-" if one.value is None else f"{one.value:.3f}"
        outcome = f"[{colours[one.outcome]}]{one.outcome}"
        table.add_row(one.floor.name, one.case, f"{side} {one.floor.bound:g}", value, outcome)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Read a results file, print the verdicts; 1 if `--check` was given and a floor was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a floor is missed")
    chosen = parser.parse_args(arguments)
    verdicts = list(judge(json.loads(chosen.results.read_text())["results"]))
    print_verdicts(verdicts, Console())
    return int(chosen.check and any(one.outcome == "missed" for one in verdicts))


def _measurable(floor: Floor, result: Result) -> bool:
    """Whether a missing number is a gap rather than a question that does not arise."""
    if floor.metric == "dead_token_share":
        return result.get("dead_token_speedup", 1.0) > 1
    return floor.metric != "compile_ratio_of_few" or result.get("distinct_levels") is None


def _number(result: Result, group: str, name: str) -> float | None:
    return (result.get(group) or {}).get(name)


if __name__ == "__main__":
    sys.exit(main())
