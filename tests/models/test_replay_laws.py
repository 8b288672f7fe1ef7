"""Whole models: selecting all tokens, in any order, changes nothing; the future stays hidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Node

from tests.models.harness import Graph, candidates, capture_calls, family, relative
from tests.models.zoo import FAMILIES, TOLERANCE
from tokenpass.edits import Edit
from tokenpass.graph.axis import find_axis
from tokenpass.graph.sites import Site, Stream
from tokenpass.rewrite.reduction import Gather, Reduction, Slice
from tokenpass.rewrite.replay import Action, Replay
from tokenpass.rewrite.rewriter import Actions, rewrite

LAWS = (
    "deit",
    "beit_pooled",
    "siglip",
    "bert_eager_padded",
    "bert_masked_words",
    "modernbert",
    "clip_text",
    "t5",
    "llama",
    "llama_classifier",
    "gemma2",
    "gpt2",
    "bloom",
    "qwen2_moe",
    "causal_stream",
    "torch_encoder",
    "written_hourglass",
    "written_unbatched",
)
"""Families whose graphs differ in how tokens, samples and heads are laid out; all: `make zoo`."""


def all_tokens(stream: Stream, site: Site, shuffled: bool) -> Action:
    """Select every token: in order, or in a random order of each sample's own."""

    def act(replay: Replay, node: Node, value: Any) -> Reduction:
        label = replay.label(node)
        at = find_axis(label, stream.axis)
        assert at is not None
        parent = label[at[0]][at[1]].cut
        tokens = replay.size(stream.axis.size)
        batch = 1 if site.batch is None else replay.size(site.batch.size)
        if shuffled:
            noise = torch.rand(batch, tokens)
            index = torch.argsort(noise, dim=1)
            back = torch.argsort(index, dim=1)
            how = Gather(index)
        else:
            how, back = Slice(0), torch.arange(tokens)[None]
        return Reduction(
            stream.axis,
            site.batch,
            tokens,
            tokens,
            how,
            parent,
            representative=back,
            ordered=not shuffled,
        )

    return Action(0, act)


def replayed(graph: Graph, at: dict[Node, list[Action]]) -> list[Any]:
    return graph.run(
        rewrite(graph.view, Actions(at), graph.captured.fakes, graph.captured.mode).module
    )


@pytest.mark.parametrize("name", LAWS)
def test_any_order_of_all_tokens_is_dense(name: str) -> None:
    _, _, graph = family(name)
    dense = graph.dense()
    for stream in graph.view.streams:
        together: dict[Node, list[Action]] = {}
        for site in stream.sites[:: max(1, len(stream.sites) // 2)]:
            action = all_tokens(stream, site, shuffled=True)
            together.setdefault(site.node, []).append(action)
        assert relative(replayed(graph, together), dense) < TOLERANCE.get(name, 1e-12)


@pytest.mark.zoo  # every site of every family: minutes
@pytest.mark.parametrize("name", FAMILIES)
def test_any_order_at_each_site_is_dense(name: str) -> None:
    _, _, graph = family(name)
    dense = graph.dense()
    for stream in graph.view.streams:
        for site in stream.sites:
            got = replayed(graph, {site.node: [all_tokens(stream, site, shuffled=True)]})
            assert relative(got, dense) < TOLERANCE.get(name, 1e-12), site.name


@pytest.mark.parametrize("name", LAWS)
def test_all_tokens_in_order_is_bit_equal(name: str) -> None:
    _, _, graph = family(name)
    dense = graph.dense()
    for stream in graph.view.streams:
        at = {s.node: [all_tokens(stream, s, shuffled=False)] for s in stream.sites[:3]}
        for got, expected in zip(replayed(graph, at), dense, strict=True):
            assert torch.equal(got, expected) if isinstance(got, torch.Tensor) else True


@pytest.mark.parametrize("name", ["bert_padded", "llama", "gpt2"])
def test_a_replay_without_edits_is_bit_equal(name: str) -> None:
    _, _, graph = family(name)
    for got, expected in zip(replayed(graph, {}), graph.dense(), strict=True):
        assert torch.equal(got, expected) if isinstance(got, torch.Tensor) else True


@pytest.mark.parametrize("policy", ["uniform", "random"])
@pytest.mark.parametrize("name", ["causal_stream", "llama_all_logits"])
def test_the_future_moves_no_earlier_output(name: str, policy: str) -> None:
    _, _, graph = family(name)
    for candidate in candidates(graph, "token_prune", policy)[:2]:
        edit = Edit("token_prune", candidate.site.name, policy, "11")
        module = graph.planned([edit]).module
        assert module is not None
        before = graph.run(module)
        for changed in (12, 16):
            moved = Graph(graph.captured, graph.view, perturbed(graph.inputs, changed))
            after = moved.run(module)
            assert torch.equal(before[0][:, :changed], after[0][:, :changed])
            assert not torch.equal(before[0], after[0])


def perturbed(inputs: tuple[Any, ...], at: int) -> tuple[Any, ...]:
    """The same inputs with other data from a token on."""
    out = list(inputs)
    for index, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
            continue
        if value.dtype == torch.long and value.dim() == 2:
            out[index] = torch.cat([value[:, :at], (value[:, at:] + 7) % 50 + 3], 1)
        elif value.is_floating_point() and value.dim() == 3 and value.shape[2] == 12:
            out[index] = torch.cat([value[:, :at], value[:, at:] + 1.0], 1)
    return tuple(out)


class TwoReads(torch.nn.Module):
    """Causal blocks whose outputs are read at two positions."""

    def __init__(self, body: torch.nn.Module, read: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body, self.read = body, read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.body(x))


@pytest.mark.parametrize(
    ("read", "allowed"),
    [
        (lambda y: y[:, -1], True),
        (lambda y: y[:, 17:], True),
        (lambda y: y[:, 3], False),
        (lambda y: y[:, -2:], False),
        (lambda y: y.mean(1), False),
        (lambda y: y, False),
    ],
)
def test_data_is_looked_at_only_if_the_last_token_alone_is_read(
    read: Callable[[torch.Tensor], torch.Tensor], allowed: bool
) -> None:
    model, call = FAMILIES["causal_stream"]()
    (graph,) = capture_calls(TwoReads(model, read), [call])
    for pass_name, policy in (("token_merge", "tome"), ("token_prune", "key_norm")):
        assert bool(candidates(graph, pass_name, policy)) == allowed
    assert candidates(graph, "token_prune", "uniform")
