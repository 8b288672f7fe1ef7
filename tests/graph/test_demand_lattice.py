"""The laws of the demand lattice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenpass.graph.demand_lattice import (
    EVERYTHING,
    NOTHING,
    Demand,
    Extent,
    Position,
    read_at,
)

POSITIONS = st.frozensets(st.integers(-2, 3).map(Position), max_size=3)
DEMANDS = st.builds(Demand, st.sampled_from(Extent), POSITIONS)


@given(DEMANDS, DEMANDS, DEMANDS)
def test_join_is_a_semilattice(a, b, c):
    assert a | a == a
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert a | NOTHING == a
    assert (a | b) | a == a | b


@given(DEMANDS, DEMANDS)
def test_join_never_needs_less(a, b):
    both = a | b
    assert both.extent >= a.extent and both.positions >= a.positions
    assert (a | EVERYTHING).extent is Extent.ALL


def test_order():
    chain = (NOTHING, read_at(0), Demand(Extent.WEIGHTED), EVERYTHING)
    assert [demand.extent for demand in chain] == sorted(demand.extent for demand in chain)


def test_positions_outlive_a_wider_demand():
    """The class token stays protected though the mean of all tokens is read as well."""
    assert (read_at(0) | EVERYTHING).positions == {Position(0)}


def test_what_is_not_needed_needs_nothing():
    assert NOTHING.read_whole() == NOTHING
    assert read_at(1).read_whole() == EVERYTHING
    assert read_at(1).read_whole(Extent.WEIGHTED).extent is Extent.WEIGHTED
