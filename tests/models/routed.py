"""Feed-forward layers behind a router, written from their papers' formulas, in many spellings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, EXPERTS, SIZE, CHOSEN = 64, 16, 128, 2


class Routed(nn.Module):
    """What all have: a router, and neurons in blocks; `spelling` names how it is written."""

    def __init__(self, spelling: str = "", width: int = WIDTH) -> None:
        super().__init__()
        self.spelling = spelling
        neurons = EXPERTS * SIZE
        self.router = nn.Linear(width, EXPERTS, bias=False)
        self.norm = nn.RMSNorm(EXPERTS)
        self.gate = nn.Linear(width, neurons, bias=False)
        self.up = nn.Linear(width, neurons)
        self.down = nn.Linear(neurons, width, bias=False)

    def chosen(self, x: Tensor) -> Tensor:
        """Weights of the chosen experts, 0 for the others."""
        logits = self.router(x)
        weights, ids = logits.softmax(-1).topk(CHOSEN, -1)
        return torch.zeros_like(logits).scatter(-1, ids, weights)


class BlockFfn(Routed):
    """y = W (r * silu(U x)), r = norm(relu(R x)) for each block of neurons."""

    def forward(self, x: Tensor) -> Tensor:
        r = self.norm(F.relu(self.router(x)))
        h = F.silu(self.up(x))
        lead = x.shape[:-1]
        if self.spelling == "repeated":
            return self.down(h * r.repeat_interleave(SIZE, -1))
        if self.spelling == "expanded":
            return self.down(r.unsqueeze(-1).expand(*lead, EXPERTS, SIZE).reshape(h.shape) * h)
        if self.spelling == "viewed":
            return self.down((h.view(*lead, EXPERTS, SIZE) * r[..., None]).flatten(-2))
        if self.spelling == "activated in blocks":
            blocks = F.silu(self.up(x).unflatten(-1, (EXPERTS, SIZE)))
            return self.down((blocks * r[..., None]).reshape(*lead, -1))
        scaled = r * torch.rsqrt(r.square().mean(-1, keepdim=True) + 1e-6)
        return self.down(h * scaled.repeat_interleave(SIZE, -1))


class Gated(Routed):
    """y = W (r * silu(G x) * (U x)), r of the chosen experts alone."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.gate(x)) * self.up(x)
        r = self.chosen(x)[..., None]
        return self.down((h.view(*x.shape[:-1], EXPERTS, SIZE) * r).flatten(-2)) + x


class NullExperts(Gated):
    """Some of those that can be chosen are none: their weights go nowhere (AdaMoE)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(WIDTH, 2 * EXPERTS, bias=False)

    def chosen(self, x: Tensor) -> Tensor:
        logits = self.wide(x)
        weights, ids = logits.softmax(-1).topk(2 * CHOSEN, -1)
        return torch.zeros_like(logits).scatter(-1, ids, weights)[..., :EXPERTS]


class Stacked(Routed):
    """y[t] = sum over e of r[t, e] D[e] silu(G[e] x[t]) * (U[e] x[t]), all experts computed."""

    def __init__(self, spelling: str = "fused") -> None:
        super().__init__(spelling)
        self.both = nn.Parameter(torch.randn(EXPERTS, 2 * SIZE, WIDTH) / 8)
        self.one = nn.Parameter(torch.randn(EXPERTS, SIZE, WIDTH) / 8)
        self.out = nn.Parameter(torch.randn(EXPERTS, WIDTH, SIZE) / 8)

    def forward(self, x: Tensor) -> Tensor:
        r = self.chosen(x)
        each = x.expand(EXPERTS, -1, -1)
        if self.spelling == "fused":
            gate, up = torch.bmm(each, self.both.transpose(1, 2)).chunk(2, -1)
            h = F.silu(gate) * up
        elif self.spelling == "apart":
            up = torch.bmm(each, self.one.transpose(1, 2))
            h = F.silu(torch.bmm(each, self.both[:, :SIZE].transpose(1, 2))) * up
        else:
            h = F.gelu(torch.matmul(x.unsqueeze(0), self.one.transpose(-1, -2)))
        y = torch.bmm(h, self.out.mT if self.spelling == "mT" else self.out.transpose(1, 2))
        return (y * r.t().unsqueeze(-1)).sum(0)
