"""Edited graphs through Inductor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
