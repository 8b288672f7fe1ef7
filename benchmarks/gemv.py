"""Sparse products on the CPU: `python -m benchmarks.gemv [--seconds 8] [--threads 2] [--check]`.

`sparse_linear` (list and product in one launch) and `few_rows_linear` against the best that PyTorch
does with the same input: eager `F.linear`, Inductor, Inductor with freezing. Pairs are interleaved.
Weights are rotated over more bytes than the last-level cache holds and every call has another mask:
with one of each, the active rows stay in the cache and the sparse kernel looks several times faster
than it is.

A floor: the speed-up reaches 0.9 of 1 / (1 - s), where s is the share of zeros, and 1.0 at s = 0.
The dense product of few rows is reported, without a floor: a profile decides where it is used.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import fingerprint, last_level_cache_bytes
from benchmarks.timing import Pace, PairedRatio, paired_ratio
from tokenpass.lower.kernels import installed_kernels
from tokenpass.ops.few_rows_linear import few_rows_linear
from tokenpass.ops.sparse_linear import sparse_linear

RESULT = Path(__file__).resolve().parent / "results" / "gemv.json"
SPARSITIES = (0.0, 0.5, 0.7, 0.9)
SHAPES = ((14336, 4096), (4096, 14336))
DENSE_ROWS = (1, 4)
DTYPES = (torch.float32, torch.bfloat16)
BEYOND_CACHE = 1.5
"""Bytes of all weights, as a multiple of the last-level cache."""
MASKS = 48
CHOOSING = 7
"""Rounds in which the baselines are compared among themselves."""
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A weight of `outputs` x `entries`, rows of input with a share `sparsity` of zeros.

    `whole`: the whole weight is read, whatever is zero.
    """

    entries: int
    outputs: int
    dtype: torch.dtype
    sparsity: float
    rows: int = 1
    whole: bool = False

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        name = f"{self.outputs} x {self.entries} {kind}, "
        return name + (f"dense, {self.rows} rows" if self.whole else f"{self.sparsity:.0%} zeros")

    @property
    def floor(self) -> float:
        """The least speed-up that is asked for."""
        if self.whole:
            return 0.0
        return 1.0 if self.sparsity == 0 else 0.9 / (1 - self.sparsity)


class Rotation:
    """Calls one function after the other, each with the next input."""

    def __init__(self, functions: Sequence[Product], inputs: Sequence[Tensor]) -> None:
        self.functions, self.inputs, self.at = functions, inputs, 0

    def __call__(self) -> Tensor:
        self.at += 1
        function = self.functions[self.at % len(self.functions)]
        return function(self.inputs[self.at % len(self.inputs)])


def products(case: Case, copies: int) -> tuple[dict[str, list[Product]], list[Product]]:
    """Each baseline's functions, one for each weight, and those of the sparse kernel."""
    layers = [nn.Linear(case.entries, case.outputs, bias=False) for _ in range(copies)]
    for layer in layers:
        layer.to(case.dtype).eval().requires_grad_(False)
    torch._dynamo.reset()
    limits = torch._dynamo.config.patch(recompile_limit=10 * copies)
    nothing = torch.zeros(case.rows, case.entries, dtype=case.dtype)
    with limits, torch.no_grad():
        compiled = torch.compile(F.linear)
        baselines: dict[str, list[Product]] = {
            "eager": [lambda x, w=layer.weight: F.linear(x, w) for layer in layers],
            "inductor": [lambda x, w=layer.weight: compiled(x, w) for layer in layers],
            "frozen": [torch.compile(layer, options={"freezing": True}) for layer in layers],
        }
        for function in (one for functions in baselines.values() for one in functions):
            function(nothing)
    own = dense if case.whole else sparse
    return baselines, [lambda x, w=layer.weight: own(x, w) for layer in layers]


def sparse(x: Tensor, weight: Tensor) -> Tensor:
    """The product, list included."""
    return sparse_linear([x], "a0", None, weight, [])


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """The product, reading the weight as it is stored."""
    return few_rows_linear([x], "a0", weight, [])


def masked_inputs(case: Case, count: int) -> list[Tensor]:
    """Rows with exactly the case's share of zeros, each in other places."""
    generator = torch.Generator().manual_seed(0)
    zeros = round(case.sparsity * case.entries)
    inputs = []
    for _ in range(count):
        x = torch.randn(case.rows, case.entries, generator=generator).to(case.dtype)
        x[x == 0] = 1.0
        x[:, torch.randperm(case.entries, generator=generator)[:zeros]] = 0.0
        inputs.append(x)
    return inputs


def fastest(baselines: dict[str, list[Product]], inputs: Sequence[Tensor]) -> dict[str, float]:
    """Median milliseconds of each baseline, interleaved."""
    turns = {name: Rotation(functions, inputs) for name, functions in baselines.items()}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(CHOOSING + 1):
        for name, turn in turns.items():
            started = time.perf_counter()
            turn()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def measure(case: Case, cache_bytes: int, pace: Pace) -> dict[str, Any]:
    """One result: the best baseline's time divided by the sparse kernel's."""
    weight_bytes = case.entries * case.outputs * case.dtype.itemsize
    copies = max(2, math.ceil(BEYOND_CACHE * cache_bytes / weight_bytes))
    baselines, ours = products(case, copies)
    inputs = masked_inputs(case, MASKS)
    with torch.no_grad():
        error = max(
            float((ours[0](x).float() - baselines["eager"][0](x).float()).abs().max())
            for x in inputs[:2]
        )
        times = fastest(baselines, inputs)
        best = min(times, key=lambda name: times[name])
        ratio = paired_ratio(
            Rotation(baselines[best], inputs), Rotation(ours, inputs), pace=pace, seed=1
        )
    return {
        "case": str(case),
        "entries": case.entries,
        "outputs": case.outputs,
        "dtype": str(case.dtype),
        "sparsity": case.sparsity,
        "copies": copies,
        "baselines_ms": times,
        "baseline": best,
        "speedup": asdict(ratio),
        "largest_difference": error,
        "floor": case.floor,
        "met": ratio.speedup >= case.floor,
    }


def lines(results: Iterable[dict[str, Any]]) -> Iterable[str]:
    """One line for each result."""
    for result in results:
        ratio = PairedRatio(**result["speedup"])
        yield (
            f"{result['case']:38} {result['baseline']:9} {ratio.dense_ms:8.2f} ms  "
            f"ours {ratio.variant_ms:7.2f} ms  {ratio!s:22} floor {result['floor']:5.2f} "
            f"{'met' if result['met'] else 'MISSED'}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure every case, write the file; 1 with `--check` where a floor was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="time limit of each pairing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", help="measure the cases whose name contains this")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a floor is missed")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    installed_kernels()
    pace = Pace(seconds=chosen.seconds, pairs=60)
    cache_bytes = last_level_cache_bytes()
    results: list[dict[str, Any]] = []
    cases = [Case(k, n, d, s) for d in DTYPES for n, k in SHAPES for s in SPARSITIES]
    cases += [Case(k, n, d, 0.0, r, True) for d in DTYPES for n, k in SHAPES for r in DENSE_ROWS]
    machine = fingerprint() | {"last_level_cache_bytes": cache_bytes}
    for case in cases:
        if chosen.only is None or chosen.only in str(case):
            results.append(measure(case, cache_bytes, pace))
            print(*lines(results[-1:]), sep="\n", flush=True)
            text = json.dumps({"machine": machine, "results": results}, indent=1)
            RESULT.write_text(text + "\n")
    print(f"written to {RESULT}")
    return int(chosen.check and not all(result["met"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
