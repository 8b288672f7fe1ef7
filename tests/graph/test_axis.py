"""Axes by what they count, never by their size."""

from __future__ import annotations

import pytest
import torch

from tokenpass.graph.axis import (
    Axis,
    AxisTable,
    Factor,
    Unalignable,
    deeper,
    find_axis,
    has_cut,
    same_size,
    with_cut,
    without_cuts,
)
from tokenpass.graph.labels import Labels
from tokenpass.rewrite.reduction import Gather, Reduction


def cut(axis, count, parent=None):
    how = Gather(torch.arange(count)[None])
    return Reduction(axis, None, axis.size, count, how, parent)


def test_an_axis_asked_for_again_is_the_same():
    table = AxisTable()
    first = table.fresh("key", 4, "tokens")
    assert table.fresh("key", 4, "tokens") is first
    assert table.fresh("other", 4, "tokens") is not first


def test_uniting_is_transitive_and_keeps_one_root():
    table = AxisTable()
    a, b, c = (table.fresh(name, 4, name) for name in "abc")
    table.unite(a, b)
    table.unite(c, b)
    table.unite(a, c)
    assert a.root is b.root is c.root


def test_place_of_an_axis_in_composite_dimensions():
    batch, tokens, width = (Axis(2, name) for name in ("batch", "tokens", "width"))
    label = ((Factor(batch), Factor(tokens)), (Factor(width),))
    assert find_axis(label, tokens) == (0, 1)
    assert find_axis(label, Axis(2, "another of the same size")) is None


def test_cuts_enter_and_leave_a_label():
    tokens = Axis(4, "tokens")
    label = ((Factor(tokens),),)
    short = with_cut(label, (0, 0), cut(tokens, 3))
    assert has_cut(short) and short[0][0].size == 3
    assert not has_cut(without_cuts(short)) and without_cuts(short)[0][0].size == 4


def test_restoring_a_factor_ends_its_sums():
    tokens = Axis(4, "tokens")
    label = ((Factor(tokens, cut(tokens, 3), extensive=True),),)
    assert not with_cut(label, (0, 0), None)[0][0].extensive


def test_deeper_cut():
    tokens = Axis(4, "tokens")
    first = cut(tokens, 3)
    second = cut(tokens, 2, first)
    assert deeper(None, first) is first
    assert deeper(second, first) is second and deeper(first, second) is second
    with pytest.raises(Unalignable):
        deeper(first, cut(tokens, 3))


def test_symbolic_sizes_compare_without_guards(trace, named):
    module = trace(lambda x: x.view(-1, 4), torch.randn(3, 5, 4), dynamic=[(0, 0), (0, 1)])
    nodes = named(module)
    rows = nodes["view"].meta["val"].shape[0]
    batch, tokens = nodes["arg0_1" if "arg0_1" in nodes else "x_1"].meta["val"].shape[:2]
    assert same_size(rows, tokens * batch) and not same_size(batch, tokens)
    assert not rows.node.shape_env.guards


def test_equal_sizes_are_told_apart(trace, named):
    """Tokens, width, heads and head_dim are all 4, and batch is too."""

    def attend(x):
        heads = x.view(4, 4, 2, 2).transpose(1, 2)
        return heads @ heads.transpose(-1, -2)

    module = trace(attend, torch.randn(4, 4, 4))
    labels, nodes = Labels(module.graph), named(module)
    source = labels[next(iter(module.graph.nodes))]
    scores = labels[nodes["matmul"]]
    batch, tokens = source[0][0].axis, source[1][0].axis
    assert [len(dim) for dim in scores] == [1, 1, 1, 1]
    assert scores[0][0].axis.root is batch.root
    assert scores[2][0].axis.root is scores[3][0].axis.root is tokens.root
    assert scores[1][0].axis.root not in (batch.root, tokens.root)
