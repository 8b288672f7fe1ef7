"""The benchmark: dense Inductor against tokenpass, `python -m benchmarks.run`.

For each case and budget: the speed ratio from interleaved pairs in one process, the predicted
ratio beside it, agreement of the outputs, then compile time and peak memory in processes of their
own. One JSON file per run, written anew after each case, with the machine's fingerprint; a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.agreement import agreement, exactness, float64_output
from benchmarks.child import ChildResult, measure_child
from benchmarks.floors import judge, print_verdicts
from benchmarks.machine import fingerprint
from benchmarks.models import CASES, QUICK_CASES, Case, find_case
from benchmarks.reported import Listener
from benchmarks.timing import Pace, paired_ratio
from benchmarks.variants import DENSE, compile_variant, tokenpass_variant

RESULTS = Path(__file__).resolve().parent / "results"
PACE = Pace(seconds=25)
QUICK_PACE = Pace(pairs=10, least=5, seconds=20, width=0.05)


def measure_case(
    case: Case, budgets: Iterable[float], *, pace: Pace, children: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One result for each budget; they share the model, its input and the compiled dense model."""
    torch.compiler.reset()
    model, inputs = case.build()
    dense = compile_variant(model, DENSE)
    say(f"{case.name}: compiling dense")
    with torch.no_grad():
        dense_output = case.output(dense(**inputs)).clone()
        say(f"{case.name}: noise floor, dense against dense")
        noise = paired_ratio(lambda: dense(**inputs), lambda: dense(**inputs), pace=pace, seed=1)
    dense_child = measure_child(case.name, DENSE) if children else None
    results: list[dict[str, Any]] = []
    for budget in budgets:
        say(f"{case.name}: budget {budget:g}")
        result = _measure_budget(case, model, inputs, dense, dense_output, budget, pace)
        if children:
            say(f"{case.name}: budget {budget:g}, compile time and memory")
            result["child"] = asdict(measure_child(case.name, tokenpass_variant(budget)))
        result |= {"noise": asdict(noise), "dense_child": _as_dict(dense_child)}
        results.append(result)
    return results


def _measure_budget(
    case: Case,
    model: nn.Module,
    inputs: Mapping[str, Any],
    dense: Callable[..., Any],
    dense_output: Tensor,
    budget: float,
    pace: Pace,
) -> dict[str, Any]:
    variant = tokenpass_variant(budget)
    compiled = compile_variant(model, variant)
    listener = Listener()
    with torch.no_grad():
        output = case.output(compiled(**inputs)).clone()
        reported = listener.reported()
        speedup = paired_ratio(lambda: dense(**inputs), lambda: compiled(**inputs), pace=pace)
    exact = None
    if budget == 1.0:
        exact = exactness(dense_output, output, float64_output(model, inputs, case.output))
    return {
        "case": case.name,
        "budget": budget,
        "layers": case.layers,
        "dead_token_speedup": case.dead_token_speedup,
        "speedup": asdict(speedup),
        "predicted_share": reported.share,
        "distinct_levels": reported.distinct_levels,
        "edits": list(reported.edits),
        "trouble": list(reported.trouble),
        "agreement": asdict(agreement(dense_output, output)),
        "exactness": asdict(exact) if exact else None,
    }


def results_table(results: Iterable[Mapping[str, Any]]) -> Table:
    """One line for each case and budget."""
    table = Table(title="Dense Inductor against tokenpass (above 1: tokenpass is faster)")
    for column in ("case", "budget", "measured", "predicted", "A/A", "rel. L2", "cosine"):
        table.add_column(column)
    table.add_column("compile (CPU s), dense / ours")
    table.add_column("peak MiB, dense / ours")
    for result in results:
        speed, noise, close = result["speedup"], result["noise"], result["agreement"]
        share = result["predicted_share"]
        table.add_row(
            result["case"],
            f"{result['budget']:g}",
            rf"{speed['speedup']:.2f} \[{speed['low']:.2f}, {speed['high']:.2f}]",
            f"{1 / share:.2f}" if share else "-",
            rf"\[{noise['low']:.2f}, {noise['high']:.2f}]",
            f"{close['relative_l2']:.1e}",
            f"{close['cosine']:.4f}",
            _both(result, "compile_cpu_s"),
            _both(result, "peak_tensor_mib"),
        )
    return table


def save(
    results: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], folder: Path = RESULTS
) -> Path:
    """Write one JSON file, named by the date of the fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = machine["date"][:19].replace(":", "").replace("-", "")
    path = folder / f"run-{stamp}.json"
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Measure the chosen cases, print the tables, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--budget", action="append", type=float)
    parser.add_argument("--quick", action="store_true", help="two small cases, few pairs")
    parser.add_argument("--no-children", action="store_true", help="no compile time, no memory")
    parser.add_argument("--seconds", type=float, help="time limit of each pairing")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a floor is missed")
    chosen = parser.parse_args(arguments)
    pace = QUICK_PACE if chosen.quick else PACE
    if chosen.seconds:
        pace = replace(pace, seconds=chosen.seconds)
    console = Console()
    every = QUICK_CASES if chosen.quick else [case.name for case in CASES]
    results: list[dict[str, Any]] = []
    machine = fingerprint()
    with console.status("starting") as status:
        say = status.update if console.is_terminal else console.print
        for name in chosen.case or every:
            case = find_case(name)
            budgets = chosen.budget or case.budgets
            results += measure_case(
                case, budgets, pace=pace, children=not chosen.no_children, say=say
            )
            save(results, machine)
            gc.collect()
    console.print(results_table(results))
    verdicts = list(judge(results))
    print_verdicts(verdicts, console)
    console.print(f"written to {save(results, machine)}")
    return int(chosen.check and any(one.outcome == "missed" for one in verdicts))


def _both(result: Mapping[str, Any], name: str) -> str:
    pair = (result.get("dense_child"), result.get("child"))
    return " / ".join(f"{child[name]:.1f}" if child else "-" for child in pair)


def _as_dict(child: ChildResult | None) -> dict[str, Any] | None:
    return asdict(child) if child else None


if __name__ == "__main__":
    sys.exit(main())
