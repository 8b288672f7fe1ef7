"""Edited graphs through Inductor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenpass
from tokenpass.report import last_reports


class WithConstant(nn.Module):
    """Two layers with a number that the model makes anew at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.qkv:
            parts = layer(x).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in parts)
            x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x * torch.tensor([0.5]).erfinv() + self.out(x)
        return x.mean(1)


def test_a_constant_of_the_model_has_no_source() -> None:
    torch.manual_seed(0)
    model, x = WithConstant().eval(), torch.randn(2, 32, 32)
    options = {"budget": 0.7, "objective": "flops", "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", options=options)
    with torch.no_grad():
        found, dense = run(x), model(x)
    assert last_reports()[-1].outcome == "edited"
    assert found.shape == dense.shape and torch.cosine_similarity(found, dense).min() > 0.5


def test_thresholds_that_a_graph_holds() -> None:
    """A calibrated policy's are constants of the graph: what Inductor makes is what eager makes."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256))
    layer.eval().requires_grad_(False)
    calibration = tokenpass.calibrate(
        layer, [torch.randn(64, 256)], progress=False, sensitivity=False
    )
    options = {
        "passes": [{"activation_sparsity": {"policy": "teal", "sparsity": 0.5}}],
        "calibration": calibration,
        "objective": "flops",
        "on_failure": "raise",
        "pack_memory": 3.0,
    }
    x = torch.randn(1, 256)
    found = []
    for lowering in ("eager", "inductor"):
        torch._dynamo.reset()
        run = torch.compile(layer, backend="tokenpass", options={**options, "lowering": lowering})
        with torch.no_grad():
            found.append(run(x))
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], layer(x))
