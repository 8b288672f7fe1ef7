"""Decoding steps with natural zeros: `python -m benchmarks.decode [--seconds 8] [--check]`.

Few rows through `torch.compile(module, backend="tokenpass")` at budget 1.0, against the best of
eager, Inductor and Inductor with freezing. Several modules are rotated, so that their weights
together exceed the last-level cache, and every call has another input. The plan decides what is
replaced: nothing here calls a kernel.

    Gemma 3n's MLP (the class of transformers, 95 % of its gate is zero by its own rule)
    an MLP of OPT's shape, biased so that 90 % of its relu is zero: 1 row, and 8, 16 and 64, where a
    plan must not be slower than dense by more than 3 %
    a decoder of OPT's shapes with such biases, one step with a cache
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gemv import BEYOND_CACHE, MASKS, Product, Rotation, fastest
from benchmarks.machine import fingerprint, last_level_cache_bytes
from benchmarks.timing import Pace, PairedRatio, paired_ratio
from tokenpass.report import LOG, last_reports

RESULT = Path(__file__).resolve().parent / "results" / "decode.json"
OPT_HIDDEN, OPT_INTERMEDIATE = 2048, 8192
GEMMA_HIDDEN, GEMMA_INTERMEDIATE = 2048, 16384
OPT_LAYERS, CACHED = 6, 128
ZEROS = 0.9
NOT_SLOWER = 0.97


def gemma3n_mlp() -> nn.Module:
    """Gemma 3n's MLP of a sparse layer, with random weights."""
    from transformers import Gemma3nTextConfig  # noqa: PLC0415
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP  # noqa: PLC0415

    config = Gemma3nTextConfig(
        hidden_size=GEMMA_HIDDEN,
        intermediate_size=[GEMMA_INTERMEDIATE],
        num_hidden_layers=1,
        activation_sparsity_pattern=[0.95],
        num_kv_shared_layers=0,
        layer_types=["full_attention"],
    )
    return Gemma3nTextMLP(config, layer_idx=0)


class OptMlp(nn.Module):
    """An MLP of OPT's shape; `ZEROS` of its activations are zero on inputs of unit variance."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(OPT_HIDDEN, OPT_INTERMEDIATE)
        self.fc2 = nn.Linear(OPT_INTERMEDIATE, OPT_HIDDEN)
        bias_for_zeros(self.fc1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.relu(self.fc1(x)))


class OptDecoder(nn.Module):
    """OPT with `OPT_LAYERS` layers, one step at a fixed place of a cache of `CACHED` tokens."""

    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        from transformers import OPTConfig, OPTForCausalLM, StaticCache  # noqa: PLC0415

        config = OPTConfig(
            hidden_size=OPT_HIDDEN,
            word_embed_proj_dim=OPT_HIDDEN,
            ffn_dim=OPT_INTERMEDIATE,
            num_hidden_layers=OPT_LAYERS,
            num_attention_heads=OPT_HIDDEN // 64,
            max_position_embeddings=2 * CACHED,
            dropout=0.0,
        )
        self.model = OPTForCausalLM(config)
        self.cache = StaticCache(config=config, max_cache_len=CACHED)
        self.register_buffer("place", torch.tensor([CACHED // 2]))
        for name, layer in self.model.named_modules():
            if name.endswith(".fc1") and isinstance(layer, nn.Linear):
                bias_for_zeros(layer)

    def forward(self, token: Tensor) -> Tensor:
        return self.model(
            input_ids=token,
            past_key_values=self.cache,
            cache_position=self.place,
            position_ids=self.place[None],
            use_cache=True,
        ).logits


def bias_for_zeros(layer: nn.Linear) -> None:
    """Bias a layer so that `ZEROS` of its results are negative on inputs of unit variance."""
    with torch.no_grad():
        deviation = layer.weight.square().sum(1).sqrt()
        quantile = math.sqrt(2) * torch.erfinv(torch.tensor(2 * ZEROS - 1))
        layer.bias.copy_(-deviation * quantile)


@dataclass(frozen=True)
class Case:
    """One module's speed-up: how it is made, on which inputs, and the least that is asked for."""

    name: str
    make: Callable[[], nn.Module]
    width: int
    dtype: torch.dtype
    floor: float
    rows: int = 1
    tokens: int = 0
    """Of a model that reads tokens: how many there are."""

    def __str__(self) -> str:
        rows = f", {self.rows} rows" if self.rows > 1 else ""
        return f"{self.name} {str(self.dtype).removeprefix('torch.')}{rows}"

    def inputs(self, count: int) -> list[Tensor]:
        """Inputs of as many calls."""
        generator = torch.Generator().manual_seed(0)
        if self.tokens:
            tokens = torch.randint(3, self.tokens, (count, 1, 1), generator=generator)
            return list(tokens)
        shape = (count, self.rows, 1, self.width)
        return list(torch.randn(shape, generator=generator).to(self.dtype))


CASES = (
    Case("gemma3n_mlp", gemma3n_mlp, GEMMA_HIDDEN, torch.float32, 2.4),
    Case("gemma3n_mlp", gemma3n_mlp, GEMMA_HIDDEN, torch.bfloat16, 2.6),
    Case("opt_mlp", OptMlp, OPT_HIDDEN, torch.float32, 1.7),
    Case("opt_mlp", OptMlp, OPT_HIDDEN, torch.bfloat16, 1.7),
    *(
        Case("opt_mlp", OptMlp, OPT_HIDDEN, dtype, NOT_SLOWER, rows)
        for dtype in (torch.float32, torch.bfloat16)
        for rows in (8, 16, 64)
    ),
    Case("opt_decoder", OptDecoder, OPT_HIDDEN, torch.float32, NOT_SLOWER, tokens=50272),
    Case("opt_decoder", OptDecoder, OPT_HIDDEN, torch.bfloat16, NOT_SLOWER, tokens=50272),
)


def modules(case: Case, copies: int) -> list[nn.Module]:
    """The case's modules, each with weights of its own."""
    torch.manual_seed(0)
    return [case.make().to(case.dtype).eval().requires_grad_(False) for _ in range(copies)]


def compiled(made: Sequence[nn.Module], **how: Any) -> list[Product]:
    """The modules compiled, each by itself."""
    return [torch.compile(module, dynamic=False, **how) for module in made]


def measure(case: Case, cache_bytes: int, pace: Pace) -> dict[str, Any]:
    """One result: the best baseline's time divided by tokenpass's."""
    weights = sum(p.numel() * p.element_size() for p in modules(case, 1)[0].parameters())
    # a decoder's layers are already more than a cache holds
    copies = max(1 if case.tokens else 2, math.ceil(BEYOND_CACHE * cache_bytes / weights))
    made = modules(case, copies)
    inputs = case.inputs(MASKS)
    torch._dynamo.reset()
    LOG.clear()
    limits = torch._dynamo.config.patch(recompile_limit=10 * copies)
    with limits, torch.no_grad():
        baselines: dict[str, list[Product]] = {
            "eager": list(made),
            "inductor": compiled(made),
            "frozen": compiled(made, options={"freezing": True}),
        }
        options = {"on_failure": "raise"}
        ours = compiled(made, backend="tokenpass", options=options)
        for function in (one for functions in (*baselines.values(), ours) for one in functions):
            function(inputs[0])
        errors = errors_of(case, made[0], ours[0], inputs[1])
        times = fastest(baselines, inputs)
        best = min(times, key=lambda name: times[name])
        ratio = paired_ratio(
            Rotation(baselines[best], inputs), Rotation(ours, inputs), pace=pace, seed=1
        )
    report = max(last_reports(), key=lambda one: len(one.plan.edits))
    return {
        "case": str(case),
        "copies": copies,
        "edits": [f"{e.pass_name}/{e.policy}" for e in report.plan.edits],
        "predicted_speedup": report.predicted_speedup,
        "packed_bytes": report.packed_bytes,
        "weight_bytes": weights,
        "relative_errors": errors,
        "baselines_ms": times,
        "baseline": best,
        "speedup": asdict(ratio),
        "floor": case.floor,
        "met": ratio.speedup >= case.floor,
    }


def errors_of(case: Case, dense: nn.Module, ours: Product, x: Tensor) -> dict[str, float]:
    """Relative distances to float64; of a decoder, whose cache has one dtype, that to dense."""
    found = {"dense": dense(x).double(), "ours": ours(x).double()}
    if case.tokens:
        exact = found.pop("dense")
    else:
        exact = dense.double()(x.double())
        dense.to(case.dtype)
    return {name: float((one - exact).norm() / exact.norm()) for name, one in found.items()}


def line(result: dict[str, Any]) -> str:
    """One result on one line."""
    ratio = PairedRatio(**result["speedup"])
    return (
        f"{result['case']:24} {result['baseline']:9} {ratio.dense_ms:8.2f} ms  "
        f"ours {ratio.variant_ms:7.2f} ms  {ratio!s:22} predicted "
        f"{result['predicted_speedup']:.2f}  floor {result['floor']:.2f} "
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
    cache_bytes = last_level_cache_bytes()
    results: list[dict[str, Any]] = []
    for case in CASES:
        if chosen.only is None or chosen.only in str(case):
            results.append(measure(case, cache_bytes, Pace(seconds=chosen.seconds, pairs=60)))
            print(line(results[-1]), flush=True)
            text = json.dumps({"machine": fingerprint(), "results": results}, indent=1)
            RESULT.write_text(text + "\n")
    print(f"written to {RESULT}")
    return int(chosen.check and not all(result["met"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
