"""Broadcasting labels, and regrouping factors against torch's own reshape."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpass.graph.axis import Axis, AxisTable, Factor, Unalignable
from tokenpass.graph.join import Irregular, broadcast, broadcast_targets, divides, regroup
from tokenpass.graph.labels import Labels
from tokenpass.rewrite.reduction import Gather, Reduction


def make(*sizes):
    return [Factor(Axis(size, f"a{at}")) for at, size in enumerate(sizes)]


def grouped(factors, cuts):
    """The factors in groups that end before each cut."""
    bounds = [0, *cuts, len(factors)]
    return [factors[a:b] for a, b in pairwise(bounds)]


def cut_of(axis, count):
    return Reduction(axis, None, axis.size, count, Gather(torch.arange(count)[None]))


SIZES = st.lists(st.integers(2, 5), min_size=1, max_size=5)


@given(SIZES, st.data())
def test_regrouping_round_trips(sizes, data):
    """Any grouping of whole factors is found, with size-1 dimensions anywhere."""
    factors = make(*sizes)
    cuts = data.draw(st.lists(st.integers(0, len(sizes)), max_size=3).map(sorted))
    groups = grouped(factors, cuts)
    shape = [math.prod(f.axis.size for f in group) for group in groups]
    label, split = regroup(factors, shape, AxisTable())
    flat = [factor for dim in label for factor in dim]
    assert flat == factors and not split
    assert [math.prod(f.size for f in dim) for dim in label] == shape
    assert regroup(flat, sizes, AxisTable())[0] == tuple((factor,) for factor in factors)


@given(SIZES, st.data())
def test_splitting_and_joining_again(sizes, data):
    """A split axis is the same each time, and its parts have the reshape's entries."""
    table, factors = AxisTable(), make(*sizes)
    at = data.draw(st.integers(0, len(sizes) - 1))
    part = data.draw(st.sampled_from([d for d in range(1, sizes[at] + 1) if sizes[at] % d == 0]))
    shape = [*sizes[:at], part, sizes[at] // part, *sizes[at + 1 :]]
    label, split = regroup(factors, shape, table)
    again, _ = regroup(factors, shape, table)
    assert label == again
    assert [math.prod(f.size for f in dim) for dim in label] == shape
    assert (split == [factors[at]]) == (1 < part < sizes[at])


@pytest.mark.parametrize(("sizes", "shape"), [((4, 6), (6, 4)), ((6,), (4, 2)), ((2, 3), (2, 2))])
def test_uneven_regrouping_is_irregular(sizes, shape):
    with pytest.raises(Irregular):
        regroup(make(*sizes), shape, AxisTable())


def test_symbolic_sizes_regroup(trace, named):
    """`[b, n, 8] -> [b n, 8] -> [b, n, 2, 4]` with both sizes unknown."""

    def function(x):
        rows = x.reshape(-1, 8) * 2
        return rows.view(x.shape[0], x.shape[1], 2, 4)

    module = trace(function, torch.randn(3, 5, 8), dynamic=[(0, 0), (0, 1)])
    labels, nodes = Labels(module.graph), named(module)
    (batch,), (tokens,), (width,) = labels[next(iter(module.graph.nodes))]
    assert labels[nodes["mul"]] == ((batch, tokens), (width,))
    assert labels[nodes["view"]][:2] == ((batch,), (tokens,))


def test_dynamic_axis_is_not_split(trace, named):
    """Windows over an unknown length get axes of their own; nothing is claimed of the tokens."""
    module = trace(lambda x: x.view(-1, 2, 4), torch.randn(6, 4), dynamic=[(0, 0)])
    labels, nodes = Labels(module.graph), named(module)
    tokens = labels[next(iter(module.graph.nodes))][0][0].axis
    found = [f.axis.root for dim in labels[nodes["view"]] for f in dim]
    assert tokens.root not in found


def test_divides_symbols():
    import sympy

    n, m = sympy.symbols("n m", integer=True, positive=True)
    assert divides(n, n * m) and divides(2 * n, 4 * n * m) and divides(n, n**2 + n)
    assert not divides(n, m) and not divides(2 * n, n) and not divides(n, n + 1)


def test_broadcast_aligns_at_the_last_dimension():
    batch, tokens, width = make(2, 3, 4)
    table = AxisTable()
    row = Factor(Axis(3, "row"))
    out = broadcast([((batch,), (tokens,), (width,)), ((row,), ())], table)
    assert out == ((batch,), (tokens,), (width,))
    assert row.axis.root is tokens.axis.root


def test_constant_axes_are_not_joined():
    """A dimension of ones says nothing about what it meets."""
    table = AxisTable()
    tokens, ones = Factor(Axis(3, "tokens")), Factor(Axis(3, "ones", constant=True))
    assert broadcast([((ones,),), ((tokens,),)], table) == ((tokens,),)
    assert ones.axis.root is not tokens.axis.root


def test_constant_dimensions_lose_against_any_that_varies():
    """However few factors they have: the result differs along it."""
    rows, columns = make(2, 3)
    ones = Factor(Axis(6, "ones", constant=True))
    assert broadcast([((ones,),), ((rows, columns),)], AxisTable()) == ((rows, columns),)
    half = Factor(Axis(2, "half", constant=True))
    with pytest.raises(Unalignable):
        broadcast([((half, columns),), (tuple(make(1, 2, 3)),)], AxisTable())


def test_targets_follow_the_output_and_offer_the_batch():
    batch, tokens, width = make(2, 3, 4)
    short = Factor(tokens.axis, cut_of(tokens.axis, 2))
    out = ((batch,), (short,), (width,))
    full, table = ((batch,), (tokens,), (width,)), ((tokens,), (width,))
    assert broadcast_targets([full, table], out) == [out, ((batch,), (short,), (width,))]


def test_cut_factors_of_other_grouping_do_not_meet():
    batch, tokens = make(2, 3)
    short = Factor(tokens.axis, cut_of(tokens.axis, 2))
    with pytest.raises(Unalignable):
        broadcast([((batch, short),), (tuple(make(6)),)], AxisTable())
