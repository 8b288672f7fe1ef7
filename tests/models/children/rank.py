"""One of two ranks: `python -m tests.models.children.rank STORE RANK` prints one line of JSON.

A small model runs by itself, then shared between the ranks by a tensor-parallel plan, each time
compiled; the distances say what sharing it changed.
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from tests.models.harness import relative
from tests.models.zoo.attention_spellings import Block, Encoder, fused
from tests.models.zoo.common import WIDTH, ready
from tokenpass.report import last_reports

RANKS = 2
OPTIONS = {"lowering": "eager", "objective": "flops", "on_failure": "raise", "verify": "first"}
PASSES = {
    "mean": [{"token_merge": {"layers": 0, "keep_ratio": 0.7}}],
    "first": [{"token_prune": {"policy": "attention_row", "layers": 0, "keep_ratio": 0.6}}],
}
"""A pass for each way to read the outputs: the mean of all tokens, or the first one."""


class Gathering(nn.Module):
    """A projection whose shared width is brought together again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.project(x))


def shared(model: Encoder, mesh: DeviceMesh) -> Encoder:
    """The same model with the heads and the MLPs of its blocks on both ranks."""
    model = copy.deepcopy(model)
    columns = ("attention.q", "attention.k", "attention.v", "up", "gate")
    plan: dict[str, Any] = {name: ColwiseParallel() for name in columns}
    plan |= {name: RowwiseParallel() for name in ("attention.out", "down")}
    for block in model.blocks:
        if isinstance(block, Gathering):
            whole = {"project": ColwiseParallel(output_layouts=Replicate())}
            parallelize_module(block, mesh, whole)
        else:
            parallelize_module(block, mesh, plan)
    return model


def small(read: str) -> tuple[Encoder, Tensor]:
    torch.manual_seed(3)
    model = Encoder([Block(fused), Gathering(WIDTH), Block(fused)], read)
    ready(model, 1.5)
    return model, torch.randn(2, 18, 12, dtype=torch.float64)


def compiled(model: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, Any]:
    torch._dynamo.reset()
    with torch.no_grad():
        out = torch.compile(model, backend="tokenpass", options={**OPTIONS, **options})(x)
    return out, last_reports()[-1]


def main(store: str, rank: int) -> dict[str, Any]:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    found: dict[str, Any] = {}
    for read, passes in PASSES.items():
        model, x = small(read)
        both = shared(model, mesh)
        with torch.no_grad():
            dense = model(x)
        exact, kept = compiled(both, x, budget=1.0)
        alone, plan = compiled(model, x, passes=passes)
        out, report = compiled(both, x, passes=passes)
        found[read] = {
            "exact": relative([exact], [dense]),
            "kept": kept.outcome,
            "distance": relative([out], [alone]),
            "changed": relative([out], [dense]),
            "edits": [str(edit) for edit in report.plan.edits],
            "same": report.plan.edits == plan.plan.edits,
            "codes": sorted({r.code for r in report.rejections}),
        }
    dist.barrier()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
