"""Small hand-written transformers, one for each way of writing them, and their replays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from tokenpass.backend import reset, tokenpass
from tokenpass.capture.dynamo import Captured, capture
from tokenpass.graph.sites import Site
from tokenpass.graph.view import View, analyse
from tokenpass.report import GraphReport, last_reports
from tokenpass.rewrite.reduction import Gather, Reduction, Segment
from tokenpass.rewrite.replay import Action, Replay


@dataclass(frozen=True)
class Form:
    """How a block is written. Sizes are free, so that any two of them can be equal."""

    qkv: str = "separate"
    attention: str = "fused"
    block: str = "pre"
    layout: str = "bnc"
    bias: str = "none"
    kv_heads: int | None = None
    between: str = "none"
    head: str = "full"
    batch: int = 2
    tokens: int = 6
    width: int = 8
    heads: int = 2
    layers: int = 2

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class Mixer(nn.Module):
    """Attention in the form's spelling; `x` is `[batch, tokens, width]`."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        kv = (form.kv_heads or form.heads) * form.head_dim
        if form.qkv == "separate":
            self.q = nn.Linear(form.width, form.width)
            self.k, self.v = nn.Linear(form.width, kv), nn.Linear(form.width, kv)
        else:
            self.qkv = nn.Linear(form.width, 3 * form.width)
        self.out = nn.Linear(form.width, form.width)
        size = form.tokens
        self.relative = nn.Parameter(torch.randn(1, form.heads, size, size))
        angle = torch.arange(size)[:, None] / 10.0 ** torch.arange(form.head_dim // 2)
        self.register_buffer("angle", torch.cat([angle, angle], -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        form = self.form
        q, k, v = self.project(x)
        if form.bias == "rotary":
            q, k = self.rotate(q), self.rotate(k)
        if form.kv_heads is not None and form.attention != "gqa":
            k, v = (self.repeat(part) for part in (k, v))
        y = self.attend(q, k, v)
        if form.attention == "bmm":
            return self.out(y)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, `[batch, heads, tokens, head_dim]`."""
        form = self.form
        b, n, _ = x.shape
        if form.qkv == "separate":
            parts = (self.q(x), self.k(x), self.v(x))
            return tuple(p.view(b, n, -1, form.head_dim).transpose(1, 2) for p in parts)
        if form.qkv == "flat":
            rows = self.qkv(x.reshape(-1, form.width)).view(b, n, -1)
            parts = rows.chunk(3, dim=-1)
        elif form.qkv == "five":
            five = self.qkv(x).view(b, n, 3, form.heads, form.head_dim).permute(2, 0, 3, 1, 4)
            return five[0], five[1], five[2]
        elif form.qkv == "unbind":
            five = self.qkv(x).reshape(b, n, 3, form.heads, form.head_dim)
            return tuple(part.transpose(1, 2) for part in five.unbind(2))
        elif form.qkv == "split":
            parts = self.qkv(x).split(form.width, dim=2)
        else:
            parts = self.qkv(x).chunk(3, dim=-1)
        return tuple(p.reshape(b, n, form.heads, form.head_dim).transpose(1, 2) for p in parts)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary embedding."""
        low, high = x.chunk(2, dim=-1)
        return x * self.angle.cos() + torch.cat([-high, low], -1) * self.angle.sin()

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """Keys or values for every query head, as HF's `repeat_kv` copies them."""
        b, h, n, d = x.shape
        copies = self.form.heads // h
        return x[:, :, None].expand(b, h, copies, n, d).reshape(b, h * copies, n, d)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """`[batch, heads, tokens, head_dim]`, by the form's spelling."""
        form = self.form
        bias = self.relative if form.bias == "relative" else None
        if form.bias == "triangle":
            hidden = torch.ones(q.shape[2], q.shape[2]).triu(1).bool()
            bias = torch.zeros(q.shape[2], q.shape[2]).masked_fill(hidden, float("-inf"))
        if form.bias == "written":
            bias = q.new_zeros(q.shape[0], 1, 1, q.shape[2])
            bias[:, :, :, 3:] = -1e9
        if form.attention == "bmm":
            b, h, n, d = q.shape
            q, k, v = (part.reshape(b * h, n, d) for part in (q, k, v))
            scores = torch.bmm(q, k.transpose(1, 2)) / d**0.5
            y = torch.bmm(scores.softmax(-1), v)
            return y.view(b, h, n, d).transpose(1, 2).reshape(b, n, h * d)
        if form.attention == "written":
            scores = q @ k.transpose(-2, -1) * form.head_dim**-0.5
            scores = scores if bias is None else scores + bias
            return F.dropout(scores.softmax(-1), 0.1, self.training) @ v
        causal = form.attention == "causal"
        gqa = form.attention == "gqa"
        return F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, enable_gqa=gqa)


class Block(nn.Module):
    """Attention and MLP around a residual stream."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.mixer = Mixer(form)
        self.first, self.second = nn.LayerNorm(form.width), nn.LayerNorm(form.width)
        self.up = nn.Linear(form.width, 2 * form.width)
        self.down = nn.Linear(2 * form.width, form.width)
        self.smooth = nn.Conv1d(form.width, form.width, 3, padding=1, groups=form.width)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.form.layout == "nbc":
            x = x.transpose(0, 1)
        if self.form.block == "post":
            x = self.first(x + self.mixer(x))
            x = self.second(x + self.mlp(x))
        elif self.form.block == "parallel":
            y = self.first(x)
            x = x + self.mixer(y) + self.mlp(y)
        else:
            x = x + self.mixer(self.first(x))
            x = x + self.mlp(self.second(x))
        if self.form.between == "conv":
            x = x + self.smooth(x.transpose(1, 2)).transpose(1, 2)
        return x.transpose(0, 1) if self.form.layout == "nbc" else x


class Small(nn.Module):
    """Blocks, a last norm, and a head that reads what the form says."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.position = nn.Parameter(torch.randn(1, form.tokens, form.width))
        self.blocks = nn.ModuleList(Block(form) for _ in range(form.layers))
        self.norm, self.head = nn.LayerNorm(form.width), nn.Linear(form.width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.position
        if self.form.layout == "nbc":
            x = x.transpose(0, 1).contiguous()
        for block in self.blocks:
            x = block(x)
        if self.form.layout == "nbc":
            x = x.transpose(0, 1)
        x = self.norm(x)
        if self.form.head == "cls":
            x = x[:, 0]
        elif self.form.head == "last":
            x = x[:, -1:]
        elif self.form.head == "mean":
            x = x.mean(1)
        return self.head(x)


def make(form: Form) -> tuple[Small, torch.Tensor]:
    """A model in evaluation mode, and an input."""
    torch.manual_seed(0)
    return Small(form).eval(), torch.randn(form.batch, form.tokens, form.width)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a backend sees of one compiled graph."""

    captured: Captured
    view: View
    inputs: Sequence[Any]

    def site(self, name: str) -> Site:
        return next(site for site in self.view.sites if site.name == name)


def look(model: Callable[..., Any], *args: Any) -> Seen:
    """Capture and analyse a model's only graph."""
    found: list[Seen] = []

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        captured = capture(module, inputs)
        view = analyse(captured.module, list(captured.data_inputs), captured.examples)

        def run(*values: Any) -> Any:
            found.append(Seen(captured, view, values))
            return Interpreter(module).run(*values)

        return run

    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(*args)
    (seen,) = found
    return seen


class CountingReplay(Replay):
    """Notes where values had to be restored before the outputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.restored: list[Node] = []

    def restore(self, operand: Any, at: Any, because: str = "a barrier") -> Any:
        if because != "a graph output":
            self.restored.append(operand.node)
        return super().restore(operand, at, because)


def permuted(seen: Seen, sites: Sequence[Site]) -> tuple[list[torch.Tensor], CountingReplay]:
    """The graph's outputs with the tokens of every sample in a random order behind some sites."""

    def act(site: Site) -> Action:
        def shuffle(replay: Replay, node: Node, value: torch.Tensor) -> Reduction:
            count = value.shape[site.token_dim]
            rows = 1 if site.batch_dim is None else value.shape[site.batch_dim]
            index = torch.stack([torch.randperm(count) for _ in range(rows)])
            parent = replay.label(node)[site.token_dim][0].cut
            return Reduction(
                site.axis,
                site.batch,
                count,
                count,
                Gather(index),
                parent,
                representative=index.argsort(1),
                ordered=False,
            )

        return Action(0, shuffle)

    replay = CountingReplay(seen.view, {site.node: [act(site)] for site in sites})
    with torch.no_grad():
        return list(replay.run(*seen.inputs)), replay


def compiled(model: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, Any, GraphReport]:
    """Output, dense output and report of one graph compiled by the backend, without Inductor."""
    reset()
    settings = {"lowering": "eager", "on_failure": "raise", "objective": "flops", **options}
    backend = functools.partial(tokenpass, options=settings)
    with torch.no_grad():
        want = model(*args)
        got = torch.compile(model, backend=backend, fullgraph=True)(*args)
    (report,) = last_reports()
    return got, want, report


def codes(report: GraphReport) -> set[str]:
    """Codes of all rejections."""
    return {rejection.code for rejection in report.rejections}


def duplicated(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The input with `count` different tokens in each sample, and where each token is found."""
    batch, tokens = x.shape[:2]
    rep = torch.stack([torch.randperm(tokens) % count for _ in range(batch)])
    return torch.stack([sample[row] for sample, row in zip(x, rep, strict=True)]), rep


def merged(seen: Seen, site: Site, rep: torch.Tensor) -> tuple[list[torch.Tensor], CountingReplay]:
    """The graph's outputs with exact duplicates merged, with their sizes, behind one site."""
    count = int(rep.max()) + 1
    member = F.one_hot(rep, count)
    sizes = member.sum(1)
    place = torch.arange(rep.shape[1]).expand(rep.shape)
    kept = torch.stack([(row[:, None] == torch.arange(count)).int().argmax(0) for row in rep])
    moved = [sorted(set(range(rep.shape[1])) - set(row.tolist())) for row in kept]
    latest = torch.where(member.bool(), place[..., None], -1).amax(1)
    share = (1.0 / sizes).gather(1, rep)

    def act(replay: Replay, node: Node, value: torch.Tensor) -> Reduction:
        return Reduction(
            site.axis,
            site.batch,
            rep.shape[1],
            count,
            Segment(rep, share, kept, torch.tensor(moved)),
            latest=lambda: latest,
            representative=rep,
            sizes=sizes.float(),
            ordered=False,
        )

    replay = CountingReplay(seen.view, {site.node: [Action(0, act)]})
    with torch.no_grad():
        return list(replay.run(*seen.inputs)), replay
