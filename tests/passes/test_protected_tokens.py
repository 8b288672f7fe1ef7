"""A token that the outputs read alone is never merged into another, however short the stream."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tokenpass
from tokenpass.backend import tokenpass as backend
from tokenpass.report import last_reports

WIDTH, HEADS = 32, 4


class Reader(nn.Module):
    """Two attention blocks with no weights, of which token 0 is read."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            heads = x.view(x.shape[0], -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
            x = x + 0.01 * mixed.transpose(1, 2).reshape(x.shape)
            x = x + 0.01 * nn.functional.gelu(x)
        return x[:, 0]


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_token_that_is_read_stays_itself(dynamic: bool) -> None:
    tokenpass.reset()
    torch.manual_seed(0)
    options = {
        "budget": 0.9,
        "objective": "flops",
        "passes": [{"token_merge": {"keep_ratio": 0.5}}],
        "lowering": "eager",
        "on_failure": "raise",
    }
    compiled = torch.compile(Reader(), backend=backend, options=options)
    for tokens in (64, 40, 33) if dynamic else (64,):
        x = torch.randn(2, tokens, WIDTH)
        if dynamic:
            torch._dynamo.mark_dynamic(x, 1)
        with torch.no_grad():
            found, dense = compiled(x), Reader()(x)
        assert (found - dense).norm() < 0.05 * dense.norm()
    assert any(e.pass_name == "token_merge" for e in last_reports()[-1].plan.edits)
