"""On a CUDA device: `make bench-gpu`, or `python -m benchmarks.gpu [--part products]`.

    products  sparse products and Gemma 3n's gated neurons, one row, against cuBLAS
    decoding  one step of a decoder of Llama 3.2 1B's shapes, half of all entries left out
    shapes    the same product by other block sizes
    kernels   the token operators' kernels against their references in torch
    models    the first suite's models in bfloat16 against Inductor

Pairs are interleaved. Products are captured in CUDA graphs of `CALLS` calls, each with another
mask and the next of several weights, which together exceed the second-level cache: a call's time
is its share of a replay, the gaps between its launches included. Where there is no CUDA device
this says so and ends with 2.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.agreement import agreement
from benchmarks.gemv import SHAPES, SPARSITIES, Case
from benchmarks.machine import fingerprint
from benchmarks.models import Case as ModelCase
from benchmarks.models import find_case
from benchmarks.reported import Listener
from benchmarks.timing import Pace, PairedRatio, paired_ratio
from benchmarks.variants import DENSE, compile_variant, tokenpass_variant
from tokenpass import calibrate
from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of
from tokenpass.codegen.packed import PACKED
from tokenpass.lower.kernels import installed_kernels
from tokenpass.ops import OPERATORS
from tokenpass.ops.glu_neuron import glu_neuron
from tokenpass.ops.mask_compact import mask_compact
from tokenpass.ops.sparse_input_gemv import sparse_input_gemv
from tokenpass.ops.sparse_linear import sparse_linear
from tokenpass.report import LOG, last_reports

RESULTS = Path(__file__).resolve().parent / "results"
CALLS = 48
"""Calls in one CUDA graph."""
BEYOND_CACHE = 4
"""Bytes of all weights, as a multiple of the second-level cache."""
HALF = 0.5
REPEATS = 20
"""Times that a product must give the same bits."""
GEMMA_HIDDEN, GEMMA_INTERMEDIATE, GEMMA_ACTIVE = 2048, 16384, 0.05
MODELS = (
    ("vit_b_224_b8", 8),
    ("llama_2048_b1", 1),
    ("vit_l_384_b1", 1),
    ("bert_base_512_b4", 1),
    ("vit_b_224_b8", 1),
)
"""Models, and times that their batch is repeated: one as on the CPU, or what fills the device."""
CACHED = 128
LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2 * CACHED,
    "tie_word_embeddings": True,
}
SPARSE_STEPS = (("teal", 0.5),)
"""Policies and shares of a decoding step."""
VARIANTS: tuple[dict[str, int], ...] = (
    {},
    {"lanes": 8},
    {"lanes": 32},
    {"block_outputs": 512, "combine_warps": 2},
    {"block_outputs": 512, "combine_warps": 1},
    {"block_outputs": 1024, "combine_warps": 4},
)
PART_FACTORS = (0.5, 1.0, 2.0)
TOKENS = {"batch": 64, "tokens": 196, "width": 768, "heads": 12}
Work = Callable[[], object]
Product = Callable[[Tensor, Tensor], Tensor]
Result = dict[str, Any]


def synchronised() -> float:
    """Seconds, once the device has done all that it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def graph_of(product: Product, weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> Work:
    """Replays `CALLS` calls, each with the next weight and the next input."""
    each = [(weights[at % len(weights)], inputs[at % len(inputs)]) for at in range(CALLS)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for weight, x in each:  # compiles, packs
            product(x, weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for weight, x in each:
            product(x, weight)
    return graph.replay


def copy_gb_per_s() -> float:
    """Bytes read and written by copies of 1 GiB, per second: the ceiling that is named."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    goal = torch.empty_like(source)
    best = math.inf
    for _ in range(8):
        started = synchronised()
        goal.copy_(source)
        best = min(best, synchronised() - started)
    return 2 * source.numel() / best / 1e9


def product_data(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Weights that together exceed the cache, and inputs that have different zeros."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    size = case.entries * case.outputs * case.dtype.itemsize
    generator = torch.Generator("cuda").manual_seed(0)
    shape = {"device": "cuda", "generator": generator}
    weights = [
        torch.randn(case.outputs, case.entries, **shape).to(case.dtype) / math.sqrt(case.entries)
        for _ in range(max(2, math.ceil(BEYOND_CACHE * cache / size)))
    ]
    zeros = round(case.sparsity * case.entries)
    inputs: list[Tensor] = []
    for _ in range(CALLS):
        x = torch.randn(1, case.entries, **shape).to(case.dtype)
        order = torch.rand(case.entries, **shape).argsort()
        x[:, order[:zeros]] = 0
        inputs.append(x)
    return weights, inputs


def sparse_product(x: Tensor, weight: Tensor) -> Tensor:
    """List and product."""
    return sparse_linear([x], "a0", None, weight, [])


def without_early_launches(x: Tensor, weight: Tensor) -> Product:
    """The same kernels, the second of which starts when the first has ended."""
    template = next(t for t in TEMPLATES if t.name == "triton_sparse_linear")
    problem = problem_of("sparse_linear", ([x], "a0", None, weight, [], "y", 1.0))
    run = template.launcher({**template.parameters(problem), "early": False})
    return lambda x, weight: run([x], "a0", None, weight, [], "y")


def measure_product(case: Case, pace: Pace, peak: float) -> Result:
    """cuBLAS against list and product, and against a product whose list is there."""
    weights, inputs = product_data(case)
    lists = {id(x): mask_compact([x], "a0", None) for x in inputs}
    dense = graph_of(F.linear, weights, inputs)
    whole = graph_of(sparse_product, weights, inputs)
    product = graph_of(
        lambda x, weight: sparse_input_gemv(*lists[id(x)], weight, []), weights, inputs
    )
    works = {"with_list": whole, "product": product}
    if case.sparsity == HALF:
        late = without_early_launches(inputs[0], weights[0])
        works["one_after_the_other"] = graph_of(late, weights, inputs)
    ratios = {
        name: paired_ratio(dense, work, pace=pace, clock=synchronised)
        for name, work in works.items()
    }
    read = (1 - case.sparsity) * case.entries * case.outputs * case.dtype.itemsize
    first = sparse_product(inputs[0], weights[0])
    exact = F.linear(inputs[0].double(), weights[0].double())
    repeated = all(
        torch.equal(first, sparse_product(inputs[0], weights[0])) for _ in range(REPEATS)
    )
    return {
        "case": str(case),
        "sparsity": case.sparsity,
        "weights": len(weights),
        **{name: _per_call(ratio, read, peak) for name, ratio in ratios.items()},
        "same_bits": repeated,
        "relative_error": float((first.double() - exact).norm() / exact.norm()),
        "relative_error_dense": float(
            (F.linear(inputs[0], weights[0]).double() - exact).norm() / exact.norm()
        ),
    }


def _per_call(ratio: PairedRatio, read: float, peak: float) -> Result:
    us = 1e3 * ratio.variant_ms / CALLS
    return {
        "speedup": ratio.speedup,
        "low": ratio.low,
        "high": ratio.high,
        "dense_us": 1e3 * ratio.dense_ms / CALLS,
        "us": us,
        "share_of_copy_bandwidth": read / (us * 1e-6) / (peak * 1e9),
    }


def measure_neurons(pace: Pace, peak: float) -> Result:
    """Gemma 3n's gated neurons behind the gate: dense products against `glu_neuron`."""
    case = Case(GEMMA_INTERMEDIATE, GEMMA_HIDDEN, torch.bfloat16, 1 - GEMMA_ACTIVE)
    downs, gates = product_data(case)
    up = {id(w): torch.randn(w.shape[::-1], device="cuda", dtype=w.dtype) / 45 for w in downs}
    x = torch.randn(1, GEMMA_HIDDEN, device="cuda", dtype=torch.bfloat16)

    def dense(gate: Tensor, down: Tensor) -> Tensor:
        return F.linear(torch.relu(gate) * F.linear(x, up[id(down)]), down)

    def sparse(gate: Tensor, down: Tensor) -> Tensor:
        return glu_neuron(x, [gate], "relu(a0)", None, up[id(down)], None, down, [])

    works = [graph_of(product, downs, gates) for product in (dense, sparse)]
    ratio = paired_ratio(*works, pace=pace, clock=synchronised)
    active = float(torch.stack([(gate > 0).float().mean() for gate in gates]).mean())
    read = 2 * active * GEMMA_HIDDEN * GEMMA_INTERMEDIATE * 2
    close = agreement(dense(gates[0], downs[0]), sparse(gates[0], downs[0]))
    return {
        "case": "glu_neuron, Gemma 3n",
        "active": active,
        **_per_call(ratio, read, peak),
        "relative_l2_to_dense": close.relative_l2,
    }


def llama_step() -> tuple[nn.Module, dict[str, Any]]:
    """A decoder of Llama 3.2 1B's shapes with random weights, and one step with a cache."""
    config = LlamaConfig(**LLAMA)
    with torch.device("cuda"):
        model = nn.Module.to(LlamaForCausalLM(config), torch.bfloat16).eval()
        model.requires_grad_(False)
        place = torch.tensor([CACHED // 2])
        call = {
            "input_ids": torch.randint(3, 1000, (1, 1)),
            "past_key_values": StaticCache(config=config, max_cache_len=CACHED),
            "cache_position": place,
            "position_ids": place[None],
            "use_cache": True,
        }
    return model, call


def replayed(model: Callable[..., Any], call: dict[str, Any]) -> tuple[Work, Tensor]:
    """One step in a CUDA graph, and where it writes its logits."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(**call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        logits = model(**call).logits
    return graph.replay, logits


def measure_decoding(pace: Pace) -> Iterator[Result]:
    """Inductor against `activation_sparsity` with thresholds found on the spot, in CUDA graphs."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model, call = llama_step()
    batch = {"input_ids": torch.randint(3, 1000, (1, 64), device="cuda"), "use_cache": False}
    found = calibrate(model, [batch], progress=False, sensitivity=False)
    with torch.no_grad():
        model(**call)  # the cache is made
        dense, wanted = replayed(torch.compile(model, dynamic=False), call)
        for policy, share in SPARSE_STEPS:
            LOG.clear()
            options = {
                "passes": [{"activation_sparsity": {"policy": policy, "sparsity": share}}],
                "calibration": found,
                "pack_memory": 1.5,
                "on_failure": "raise",
            }
            run = torch.compile(model, backend="tokenpass", dynamic=False, options=options)
            step, logits = replayed(run, call)
            ratio = paired_ratio(dense, step, pace=pace, clock=synchronised)
            edits = [edit.pass_name for report in last_reports() for edit in report.plan.edits]
            yield {
                "case": f"decoding, {policy} {share}",
                **asdict(ratio),
                "dense_tokens_per_s": 1e3 / ratio.dense_ms,
                "tokens_per_s": 1e3 / ratio.variant_ms,
                "edits": {name: edits.count(name) for name in sorted(set(edits))},
                "rejections": sorted({r.code for one in last_reports() for r in one.rejections}),
                "relative_l2_to_dense": agreement(wanted, logits).relative_l2,
            }
            torch._dynamo.reset()
            PACKED.clear()


def measure_shapes(case: Case, pace: Pace) -> Iterator[Result]:
    """The product alone by each of `VARIANTS` and shares of the list."""
    weights, inputs = product_data(case)
    lists = {id(x): mask_compact([x], "a0", None) for x in inputs}
    template = next(t for t in TEMPLATES if t.name == "triton_sparse_input_gemv")
    problem = problem_of("sparse_input_gemv", (*lists[id(inputs[0])], weights[0], [], "y", 1.0))
    chosen = template.parameters(problem)
    dense = graph_of(F.linear, weights, inputs)
    for variant in VARIANTS:
        for factor in PART_FACTORS:
            columns = int(chosen["block_outputs"]) / variant.get("block_outputs", 256)
            parts = max(1, min(128, round(int(chosen["parts"]) * factor / columns)))
            run = template.launcher({**chosen, **variant, "parts": parts})
            works = graph_of(
                lambda x, weight, run=run: run(*lists[id(x)], weight, [], "y"), weights, inputs
            )
            ratio = paired_ratio(dense, works, pace=pace, clock=synchronised)
            yield {
                "case": str(case),
                **variant,
                "parts": parts,
                "us": 1e3 * ratio.variant_ms / CALLS,
                "speedup": ratio.speedup,
            }


def measure_kernels(pace: Pace) -> Iterator[Result]:
    """Each token operator by name, as graphs call it, against its reference, ten calls a time."""
    for operator in OPERATORS:
        if "tokens" not in operator.sizes or operator.gradient == "refused":
            continue
        sizes = {name: TOKENS.get(name, 8) for name in operator.sizes}
        generator = torch.Generator().manual_seed(0)
        arguments = [
            value.cuda() if isinstance(value, Tensor) else value
            for value in operator.example(generator, torch.bfloat16, **sizes)
        ]
        ratio = paired_ratio(
            _ten(operator.reference, arguments),
            _ten(operator.overload, arguments),
            pace=pace,
            clock=synchronised,
        )
        yield {
            "case": operator.name,
            "sizes": sizes,
            "reference_us": 100 * ratio.dense_ms,
            "us": 100 * ratio.variant_ms,
            "speedup": ratio.speedup,
        }


def _ten(function: Callable[..., object], arguments: Sequence[Any]) -> Work:
    def work() -> None:
        for _ in range(10):
            function(*arguments)

    return work


def measure_model(case: ModelCase, times: int, pace: Pace) -> Iterator[Result]:
    """Dense Inductor against each budget, in bfloat16."""
    torch.compiler.reset()
    PACKED.clear()
    model, inputs = case.build()
    model = model.to("cuda", torch.bfloat16)
    there = {name: _placed(value, times) for name, value in inputs.items()}
    dense = compile_variant(model, DENSE)
    with torch.no_grad():
        wanted = case.output(dense(**there)).clone()
        for budget in case.budgets:
            compiled, listener = compile_variant(model, tokenpass_variant(budget)), Listener()
            found = case.output(compiled(**there)).clone()
            reported = listener.reported()
            ratio = paired_ratio(
                lambda: dense(**there),
                lambda run=compiled: run(**there),
                pace=pace,
                clock=synchronised,
            )
            yield {
                "case": f"{case.name} x{times}",
                "budget": budget,
                **asdict(ratio),
                "predicted_share": reported.share,
                "edits": len(reported.edits),
                "trouble": list(reported.trouble),
                "agreement": asdict(agreement(wanted, found)),
            }


def _placed(value: Any, times: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.repeat(times, *(1,) * (value.dim() - 1)).cuda()
    return value.bfloat16() if value.is_floating_point() else value


def parts(pace: Pace, peak: float) -> dict[str, list[Callable[[], Iterator[Result]]]]:
    """What each part measures, in the order in which it is measured."""
    cases = [Case(k, n, torch.bfloat16, s) for n, k in SHAPES for s in SPARSITIES]
    half = [case for case in cases if case.sparsity == HALF]
    models = [(find_case(name), times) for name, times in MODELS]
    return {
        "products": [
            *(lambda case=case: iter([measure_product(case, pace, peak)]) for case in cases),
            lambda: iter([measure_neurons(pace, peak)]),
        ],
        "decoding": [lambda: measure_decoding(pace)],
        "models": [
            lambda case=case, times=times: measure_model(case, times, pace)
            for case, times in models
        ],
        "kernels": [lambda: measure_kernels(pace)],
        "shapes": [lambda case=case: measure_shapes(case, pace) for case in half],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write one result after the other; what fails is said and passed over."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("products", "decoding", "models", "kernels", "shapes")
    parser.add_argument("--part", action="append", choices=names)
    parser.add_argument("--seconds", type=float, default=5, help="time limit of each pairing")
    parser.add_argument("--limit", type=float, default=math.inf, help="start nothing after this")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device was found: nothing is measured", file=sys.stderr)
        return 2
    handle = installed_kernels()
    started, pace = time.perf_counter(), Pace(seconds=chosen.seconds, pairs=30, least=8)
    peak = copy_gb_per_s()
    machine = fingerprint() | {"copy_gb_per_s": peak, "calls_per_graph": CALLS}
    found: dict[str, list[Result]] = {}
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower()
    path = RESULTS / f"gpu-{name}.json"
    plans = parts(pace, peak)
    for part in chosen.part or names:
        for measure in plans[part]:
            if time.perf_counter() - started > chosen.limit:
                print(f"{part}: no time left", flush=True)
                break
            try:
                for result in measure():
                    found.setdefault(part, []).append(result)
                    print(part, json.dumps(_rounded(result)), flush=True)
                    path.write_text(
                        json.dumps({"machine": machine, "results": found}, indent=1) + "\n"
                    )
            except Exception as error:  # the next case may well run
                failed = {"failed": f"{type(error).__name__}: {error}"[:500]}
                found.setdefault(part, []).append(failed)
                print(part, json.dumps(failed), flush=True)
            PACKED.clear()
            gc.collect()
            torch.cuda.empty_cache()
    del handle
    print(f"written to {path}")
    return int(not found or any("failed" in one for each in found.values() for one in each))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return value


if __name__ == "__main__":
    sys.exit(main())
