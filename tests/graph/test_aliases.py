"""Values that are written to, through whatever view."""

from __future__ import annotations

import pytest
import torch

from tokenpass.graph.aliases import written_nodes

X = torch.randn(2, 5, 4)


def written(module):
    """Names of the nodes that share memory with a written one, and of the writers."""
    found = written_nodes(module.graph)
    return {node.name for node in found}, {writer.name for writer in found.values()}


def view_add(x):
    h = x * 2
    h.view(2, -1).add_(1)
    return h * 3


def slice_copy(x):
    h = x * 2
    h[:, 1:3].copy_(torch.zeros(2, 2, 4))
    return h * 3


def index_put(x):
    h = x * 2
    h[torch.tensor([0]), torch.tensor([1])] = 1.0
    return h * 3


def select_fill(x):
    h = x * 2
    h[:, 0] = 0
    return h * 3


def chained_views(x):
    h = x * 2
    h.transpose(1, 2).reshape(2, 4, 5).unsqueeze(0)[0].mul_(2)
    return h * 3


def part_of_split(x):
    h = x * 2
    h.chunk(2, -1)[1].add_(1)
    return h * 3


def no_view_of_expand(x):
    h = x[:, :1] * 2
    h.expand(2, 5, 4)[:, 0].detach().add_(1)
    return h * 3


WRITES = [view_add, slice_copy, index_put, select_fill, chained_views, part_of_split,
          no_view_of_expand]  # fmt: skip


@pytest.mark.parametrize("function", WRITES, ids=lambda f: f.__name__)
def test_writes_are_seen_through_views(trace, function):
    nodes, writers = written(trace(function, X))
    assert "mul" in nodes and writers
    assert "mul_1" not in nodes


def test_writes_to_inputs(trace):
    def bump(x, cache):
        cache.index_copy_(1, torch.tensor([0]), x[:, :1])
        return x + cache

    module = trace(bump, X, X.clone())
    nodes, _ = written(module)
    first, second = (n.name for n in module.graph.nodes if n.op == "placeholder")
    assert second in nodes and first not in nodes


def test_results_that_only_may_share_memory_count(trace):
    """`contiguous`, `to` and `reshape` may return their input."""

    def function(x):
        h = x * 2
        h.contiguous().to(torch.float32).reshape(2, -1).add_(1)
        return h * 3

    assert "mul" in written(trace(function, X))[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x.view(2, -1) + 1).softmax(-1),
        lambda x: torch.cat([x[:, :1], x.transpose(1, 2).transpose(1, 2)], 1),
        lambda x: x.detach().expand(3, 2, 5, 4).sum(0),
    ],
)
def test_pure_graphs_have_none(trace, function):
    assert written(trace(function, X)) == (set(), set())


def test_writes_to_copies_do_not_reach_their_source(trace):
    def function(x):
        h = x * 2
        other = h.clone()
        other.add_(1)
        return h + other

    assert "mul" not in written(trace(function, X))[0]
