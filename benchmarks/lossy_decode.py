"""Decoding steps with activation sparsity: `python -m benchmarks.lossy_decode [--sweep] [--check]`.

A decoder of Llama 3.2 1B's shapes with random weights, one row and a cache of `CACHED` tokens,
through the backend, against eager and Inductor, in interleaved pairs.
Its weights exceed every cache, so nothing has to be rotated. Thresholds come from a calibration on
random tokens, so that the share that is left out is the one that is named.

    headline   16 layers: exact (budget 1.0), and half of all projections' entries left out (TEAL)
    --sweep    4 layers: where policies act (inputs, neurons by their gate, neurons by place, inputs
               by a top-k in every call) at several levels; with the quality of the same levels this
               is the plot
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokenpass
from benchmarks.gemv import fastest
from benchmarks.machine import fingerprint
from benchmarks.timing import Pace, PairedRatio, paired_ratio
from tokenpass.report import LOG, last_reports

RESULT = Path(__file__).resolve().parent / "results" / "lossy_decode.json"
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 2048, 8192, 32, 8, 128256
LAYERS, SWEPT_LAYERS = 16, 4
CACHED = 128
DTYPES = (torch.bfloat16, torch.float32)
FLOOR = 1.5
SWEPT = {
    "teal": (0.3, 0.5, 0.7),
    "top_k": (0.3, 0.5, 0.7),
    "chess": (0.3, 0.5, 0.7, 0.85),
    "griffin": (0.3, 0.5, 0.6),
}
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Setting:
    """What is compiled: a policy at a share of entries, or nothing lossy; the least asked for."""

    policy: str | None
    share: float
    floor: float | None = None

    def __str__(self) -> str:
        return "exact" if self.policy is None else f"{self.policy} {self.share:.0%}"

    def options(self, calibration: str) -> dict[str, Any]:
        """Options of the compilation; the head, whose output is all logits, stays dense."""
        found: dict[str, Any] = {"on_failure": "raise"}
        if self.policy is None:
            return found
        sparsity = {"policy": self.policy, "sparsity": self.share, "exclude": ["lm_head*"]}
        found |= {"budget": 0.99, "pack_memory": 1.0, "calibration": calibration}
        return {**found, "passes": [{"activation_sparsity": sparsity}]}


def llama(layers: int, dtype: torch.dtype) -> nn.Module:
    """A decoder of Llama 3.2 1B's shapes with so many layers."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
        head_dim=HIDDEN // HEADS,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def step_of(model: Callable[..., Any]) -> Step:
    """One decoding step; the cache is cut back to its length, so that every step is the same."""
    from transformers import DynamicCache  # noqa: PLC0415

    cache = DynamicCache()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (1, CACHED), generator=generator)
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    token = torch.randint(0, VOCABULARY, (1, 1), generator=generator)

    def step() -> Tensor:
        logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
        cache.crop(-1)
        return logits

    return step


def calibrated(model: nn.Module, path: Path) -> str:
    """A calibration on random tokens, without sensitivities: levels are fixed here."""
    generator = torch.Generator().manual_seed(2)
    batches = [
        {
            "input_ids": torch.randint(0, VOCABULARY, (1, 64), generator=generator),
            "use_cache": False,
        }
        for _ in range(4)
    ]
    tokenpass.calibrate(model, batches, path=path, progress=False, sensitivity=False)
    return str(path)


def compiled(model: nn.Module, **how: Any) -> Step:
    """A compiled step that has run (at the second call Dynamo makes the length dynamic)."""
    step = step_of(torch.compile(model, **how))
    for _ in range(3):
        step()
    return step


def measure(
    layers: int, dtype: torch.dtype, settings: list[Setting], pace: Pace
) -> Iterator[dict[str, Any]]:
    """Each setting beside the faster of eager and Inductor."""
    model = llama(layers, dtype)
    torch._dynamo.reset()
    baselines = {"eager": step_of(model), "inductor": compiled(model)}
    times = fastest({k: [lambda _, s=s: s()] for k, s in baselines.items()}, [torch.zeros(())])
    exact = baselines["eager"]()
    with tempfile.TemporaryDirectory() as folder:
        calibration = calibrated(model, Path(folder) / "calibration.yaml")
        for setting in settings:
            LOG.clear()
            torch._dynamo.reset()
            inductor = compiled(model)
            ours = compiled(model, backend="tokenpass", options=setting.options(calibration))
            ratios = {
                name: paired_ratio(baseline, ours, pace=pace, seed=1)
                for name, baseline in (("eager", baselines["eager"]), ("inductor", inductor))
            }
            report = max(last_reports(), key=lambda one: len(one.plan.edits))
            error = float((ours() - exact).norm() / exact.norm())
            best = min(ratios, key=lambda name: ratios[name].speedup)
            yield {
                "layers": layers,
                "dtype": str(dtype).removeprefix("torch."),
                "setting": str(setting),
                "policy": setting.policy,
                "share": setting.share,
                "baseline": best,
                "baselines_ms": times,
                "speedup": asdict(ratios[best]),
                "speedups": {name: asdict(one) for name, one in ratios.items()},
                "predicted_speedup": report.predicted_speedup,
                "edits": len(report.plan.edits),
                "packed_bytes": report.packed_bytes,
                "relative_error": error,
                "own_seconds": report.seconds,
                "floor": setting.floor,
            }


def again(
    result: dict[str, Any],
    layers: int,
    dtypes: Sequence[torch.dtype],
    policies: Collection[str | None],
) -> bool:
    """Whether a stored result is of what is measured now."""
    same = result["layers"] == layers and f"torch.{result['dtype']}" in map(str, dtypes)
    return same and result["policy"] in policies


def line(result: dict[str, Any]) -> str:
    """One result on one line."""
    ratio, floor = PairedRatio(**result["speedup"]), result["floor"]
    asked = "" if floor is None else f"  floor {floor:.2f} {'met' if met(result) else 'MISSED'}"
    return (
        f"{result['layers']:2} layers {result['dtype']:8} {result['setting']:10} "
        f"{result['baseline']:8} {ratio.dense_ms:7.1f} ms  ours {ratio.variant_ms:7.1f} ms  "
        f"{ratio!s:22} predicted {result['predicted_speedup']:.2f}{asked}"
    )


def met(result: dict[str, Any]) -> bool:
    """Whether a result reaches its floor, if it has one."""
    return result["floor"] is None or result["speedup"]["speedup"] >= result["floor"]


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the file; 1 with `--check` where a floor was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="time limit of each pairing")
    parser.add_argument("--sweep", action="store_true", help="policies and levels, 4 layers")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="one of the two")
    parser.add_argument("--only", choices=tuple(SWEPT), help="one policy of the sweep")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a floor is missed")
    parser.add_argument("--output", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    settings = [Setting(None, 0.0), Setting("teal", 0.5, FLOOR)]
    if chosen.sweep:
        only = SWEPT if chosen.only is None else {chosen.only: SWEPT[chosen.only]}
        settings = [Setting(policy, at) for policy, levels in only.items() for at in levels]
    layers = SWEPT_LAYERS if chosen.sweep else LAYERS
    dtypes = [d for d in DTYPES if chosen.dtype is None or chosen.dtype in str(d)]
    dtypes = dtypes[: 1 if chosen.sweep else 2]
    machine = fingerprint()
    results: list[dict[str, Any]] = []
    if chosen.output.exists():  # what is not measured again stays, with the machine it is of
        known = json.loads(chosen.output.read_text())["results"]
        now = {setting.policy for setting in settings}
        results = [one for one in known if not again(one, layers, dtypes, now)]
    with torch.no_grad():
        for dtype in dtypes:
            pace = Pace(seconds=chosen.seconds, pairs=60)
            for result in measure(layers, dtype, settings, pace):
                results.append({**result, "machine": machine})
                print(line(result), flush=True)
                chosen.output.write_text(json.dumps({"results": results}, indent=1) + "\n")
    return int(chosen.check and not all(map(met, results)))


if __name__ == "__main__":
    sys.exit(main())
