"""Reductions: positions over levels, log sizes, places of exact cuts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpass.graph.axis import Axis, Factor, Unalignable
from tokenpass.graph.demand_lattice import Position
from tokenpass.rewrite.read_cut import place_among, run_start
from tokenpass.rewrite.reduction import (
    Dense,
    DenseIndexRefused,
    Gather,
    Reduction,
    Slice,
    spread_rows,
)

AXIS, BATCH = Axis(7, "tokens"), Axis(3, "batch")


def gather(index, parent=None, **more):
    full = AXIS.size if parent is None else parent.count
    return Reduction(AXIS, BATCH, full, index.shape[1], Gather(index), parent, **more)


def draw_index(data, full, rows):
    count = data.draw(st.integers(1, full))
    pick = st.permutations(range(full)).map(lambda order: sorted(order[:count]))
    return torch.tensor([data.draw(pick) for _ in range(rows)])


@given(st.data())
def test_positions_compose_over_two_levels(data):
    """Against a loop; one level or both may be shared by all samples."""
    rows = [data.draw(st.sampled_from([1, 3])) for _ in range(2)]
    first = gather(draw_index(data, 7, rows[0]))
    second = gather(draw_index(data, first.count, rows[1]), first)
    outer, inner = first.reduce.index, second.reduce.index
    for b in range(max(rows)):
        mine, below = outer[b % len(outer)], inner[b % len(inner)]
        assert second.position[b].tolist() == [int(mine[j]) for j in below]
    assert second.steps_from(None) == [first, second] and second.steps_from(first) == [second]
    assert second.per_sample == (max(rows) > 1)


@given(st.data())
def test_a_kept_token_is_found_among_those_left(data):
    rows = data.draw(st.sampled_from([1, 3]))
    step = gather(draw_index(data, 7, rows))
    slot = data.draw(st.integers(0, step.count - 1))
    place = step.reduce.index[:, slot : slot + 1]
    assert place_among(step, place).tolist() == [[slot]] * rows


def test_position_of_a_slice_below_a_gather():
    first = gather(torch.tensor([[1, 4, 6], [0, 2, 3]]))
    last = Reduction(AXIS, BATCH, 3, 1, Slice(2), first)
    assert last.position.tolist() == [[6], [3]]


def test_unrelated_reductions_do_not_follow_each_other():
    with pytest.raises(Unalignable):
        gather(torch.tensor([[0]])).steps_from(gather(torch.tensor([[0]])))


def test_log_sizes_hide_padding():
    step = gather(torch.tensor([[0, 2]]), sizes=torch.tensor([[3.0, 0.0]]))
    assert step.log_sizes(torch.float32).tolist() == [[pytest.approx(math.log(3)), -math.inf]]
    assert step.log_sizes(torch.float32) is step.log_sizes(torch.float32)
    assert step.log_sizes(torch.float16).dtype == torch.float16


def test_dense_reductions_have_no_index():
    weights = torch.ones(1, 2, 7) / 7
    step = Reduction(AXIS, BATCH, 7, 2, Dense(weights, torch.ones(1, 7, 2)))
    with pytest.raises(DenseIndexRefused):
        _ = step.position


def test_slots_of_an_exact_cut():
    first, last = Position(0), Position(-1)
    step = gather(torch.tensor([[0, 6]]), read=(first, last))
    assert step.slots((last,)) == [1] and step.slots((last, first)) == [1, 0]
    assert step.slots((Position(3),)) is None
    assert gather(torch.tensor([[0, 6]])).slots((first,)) is None


@pytest.mark.parametrize(
    ("places", "start"),
    [([0], 0), ([2, 3], 2), ([-1], 6), ([-2, -1], 5), ([0, 2], None), ([6], 6)],
)
def test_runs_of_positions(places, start):
    assert run_start(tuple(Position(p) for p in places), 7, None) == start


def test_runs_below_a_lossy_cut_know_the_ends_alone():
    parent = gather(torch.tensor([[0, 2, 6]]))
    assert run_start((Position(0),), 3, parent) == 0
    assert run_start((Position(-1),), 3, parent) == run_start((Position(6),), 3, parent) == 2
    assert run_start((Position(2),), 3, parent) is None


LAYOUTS = {
    "batch, tokens": ([["b"], ["n"], ["c"]], (3, 5, 1)),
    "tokens, batch": ([["n"], ["b"]], (5, 3)),
    "batch x tokens": ([["b", "n"], ["c"]], (15, 1)),
    "tokens x batch": ([["n", "b"]], (15,)),
    "batch x heads": ([["b", "h"], ["n"]], (6, 5)),
    "heads x batch": ([["h", "b"], ["c"], ["n"]], (6, 1, 5)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_spread_over_a_value(name):
    """`out[.., b, .., n, ..] = rows[b, n]`, whatever shares a dimension with them."""
    groups, shape = LAYOUTS[name]
    axes = {"b": BATCH, "n": Axis(5, "n"), "h": Axis(2, "h"), "c": Axis(4, "c")}
    label = tuple(tuple(Factor(axes[x]) for x in group) for group in groups)
    at = next((d, group.index("n")) for d, group in enumerate(groups) if "n" in group)
    sizes = lambda part: [math.prod(f.size for f in dim) for dim in part]  # noqa: E731
    rows = torch.arange(15.0).reshape(3, 5)
    got = spread_rows(rows, label, at, BATCH, sizes)
    assert got.shape == shape
    letters = [x for group in groups for x in group]
    filled = [axes[x].size if x != "c" else 1 for x in letters]
    apart = got.reshape(filled)
    for b in range(3):
        for n in range(5):
            where = tuple({"b": b, "n": n}.get(x, slice(None)) for x in letters)
            assert (apart[where] == rows[b, n]).all()


def test_rows_of_samples_need_samples():
    label = ((Factor(AXIS),),)
    with pytest.raises(Unalignable):
        spread_rows(torch.ones(3, 7), label, (0, 0), BATCH, lambda part: [7])
    assert spread_rows(torch.ones(1, 7), label, (0, 0), BATCH, lambda part: [7]).shape == (7,)
