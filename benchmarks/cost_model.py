"""Judge the cost model: predicted against measured speed-up between two lengths of one model.

Both lengths are compiled dense through Inductor in one process; pairs are timed in random order
and the median ratio counts. Prints a table and writes benchmarks/results/cost_model.json.
With `--alone`, one thread is timed in processor time, against a profile measured likewise first:
the same comparison for a machine too busy to time several threads.

    python benchmarks/cost_model.py [--profile FILE_OR_NAME] [--case PART_OF_NAME] [--pairs N]
    python benchmarks/cost_model.py --alone
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn
from torch._guards import TracingContext
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
)

from tokenpass.cost.device import DeviceProfile, device_fingerprint, find_profile
from tokenpass.cost.measure import measure
from tokenpass.cost.roofline import GraphCost, graph_cost

RESULTS = Path(__file__).parent / "results"


class Layers(nn.Module):
    """A vision transformer's layers on hidden states [batch, tokens, width], any token count."""

    def __init__(self, model: ViTModel) -> None:
        super().__init__()
        self.layers, self.norm = model.layers, model.layernorm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class LastHidden(nn.Module):
    """A text model that returns its last hidden state alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, use_cache=False).last_hidden_state


@dataclass(frozen=True)
class Case:
    """One model, its batch, and the token counts whose costs are compared with the first."""

    name: str
    build: Callable[[], nn.Module]
    batch: int
    counts: tuple[int, ...]
    width: int | None = None

    def example(self, count: int) -> torch.Tensor:
        if self.width is None:
            return torch.randint(0, 1000, (self.batch, count))
        return torch.randn(self.batch, count, self.width)


def _vit(layers: int, width: int, heads: int) -> nn.Module:
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    return Layers(ViTModel(config, add_pooling_layer=False))


def _bert(layers: int, width: int, heads: int) -> nn.Module:
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    return LastHidden(BertModel(config, add_pooling_layer=False))


def _llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=1024,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=2816,
        vocab_size=1000,
        max_position_embeddings=4096,
    )
    return LastHidden(LlamaModel(config))


CASES: tuple[Case, ...] = (
    Case("vit-s batch 1", lambda: _vit(12, 384, 6), 1, (197, 150, 98), 384),
    Case("vit-b batch 1", lambda: _vit(12, 768, 12), 1, (197, 150, 98), 768),
    Case("vit-b batch 8", lambda: _vit(12, 768, 12), 8, (197, 150, 98), 768),
    Case("vit-l batch 1", lambda: _vit(24, 1024, 16), 1, (577, 300), 1024),
    Case("minilm batch 8", lambda: _bert(6, 384, 12), 8, (256, 192, 128)),
    Case("bert-base batch 4", lambda: _bert(12, 768, 12), 4, (512, 256)),
    Case("llama batch 1", _llama, 1, (2048, 1024)),
)


def predict(model: nn.Module, example: torch.Tensor) -> GraphCost:
    """The cost of the graph that Dynamo captures, traced to ATen before dispatch."""
    costs: list[GraphCost] = []

    def backend(gm: fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        costs.append(graph_cost(_aten_graph(gm, inputs)))
        return gm.forward

    torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(example)
    torch._dynamo.reset()
    return costs[0]


def _aten_graph(gm: fx.GraphModule, inputs: list[torch.Tensor]) -> fx.GraphModule:
    mode = TracingContext.get().fake_mode
    if mode is None:
        raise RuntimeError("Dynamo gave no fake mode to trace under")
    fakes = [mode.from_tensor(value, static_shapes=True) for value in inputs]
    with mode, preserve_node_meta():
        return make_fx(fx.Interpreter(gm).run, pre_dispatch=True)(*fakes)


def measure_case(
    case: Case, pairs: int, clock: Callable[[], float]
) -> tuple[dict[int, GraphCost], dict[int, list[float]]]:
    """Predicted costs and measured seconds by token count, rounds in random order."""
    torch.manual_seed(0)
    model = case.build().eval()
    examples = {count: case.example(count) for count in case.counts}
    costs = {count: predict(model, example) for count, example in examples.items()}
    compiled = torch.compile(model, dynamic=False)
    for example in examples.values():
        for _ in range(2):
            compiled(example)
    seconds: dict[int, list[float]] = {count: [] for count in case.counts}
    order = random.Random(0)
    for _ in range(pairs):
        for count in order.sample(case.counts, len(case.counts)):
            start = clock()
            compiled(examples[count])
            seconds[count].append(clock() - start)
    torch._dynamo.reset()
    return costs, seconds


def rows(
    case: Case, profile: DeviceProfile, pairs: int, clock: Callable[[], float]
) -> list[dict[str, object]]:
    """One row per shorter count: predicted and measured ratio to the longest, and the error."""
    costs, seconds = measure_case(case, pairs, clock)
    full = case.counts[0]
    dense = costs[full].evaluate({}, profile)
    result = []
    for count in case.counts[1:]:
        predicted = dense / costs[count].evaluate({}, profile)
        ratios = [a / b for a, b in zip(seconds[full], seconds[count], strict=True)]
        measured = statistics.median(ratios)
        fastest = min(seconds[full]) / min(seconds[count])
        result.append(
            {
                "case": case.name,
                "tokens": [full, count],
                "predicted": round(predicted, 4),
                "measured": round(measured, 4),
                "measured_of_fastest": round(fastest, 4),
                "error": round(predicted / measured - 1, 4),
                "dense_ms_predicted": round(dense * 1e3, 2),
                "dense_ms_fastest": round(min(seconds[full]) * 1e3, 2),
                "unknown_operators": list(costs[count].unknown),
            }
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", help="device profile: a shipped name or a YAML file")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--alone", action="store_true", help="one thread, processor time")
    chosen = parser.parse_args()
    clock = time.process_time if chosen.alone else time.perf_counter
    if chosen.alone:
        torch.set_num_threads(1)
    profile = measure("cpu") if chosen.alone else find_profile("cpu", chosen.profile)
    table = []
    for case in (case for case in CASES if chosen.case in case.name):
        with torch.inference_mode():
            for row in rows(case, profile, chosen.pairs, clock):
                table.append(row)
                print(
                    f"{row['case']:18} {row['tokens']!s:12} predicted {row['predicted']:.3f} "
                    f"measured {row['measured']:.3f} ({row['measured_of_fastest']:.3f} fastest) "
                    f"error {row['error']:+.1%}  dense {row['dense_ms_predicted']} ms predicted, "
                    f"{row['dense_ms_fastest']} fastest {row['unknown_operators']}",
                    flush=True,
                )
    errors = [abs(float(str(row["error"]))) for row in table]
    print(f"median {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    if not chosen.case:
        machine = device_fingerprint(torch.device("cpu"))
        RESULTS.mkdir(exist_ok=True)
        name = "cost_model_one_thread.json" if chosen.alone else "cost_model.json"
        data = {"machine": machine, "profile": profile.name, "rows": table}
        (RESULTS / name).write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
