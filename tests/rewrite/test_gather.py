"""Taking, merging, combining and writing back, against loops over samples and tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpass.graph.axis import Axis, AxisTable, Factor, Unalignable
from tokenpass.rewrite.gather import combine, merge, open_factors, take, write_back
from tokenpass.rewrite.reduction import Segment

SIZES = {"b": 3, "n": 5, "h": 2, "c": 4}
LAYOUTS = ("b n c", "n b c", "b c n", "b h n c", "(b n) c", "(n b) c", "(b h) n c", "b n (h c)",
           "h b n", "n b", "c (b n)")  # fmt: skip


def parse(dims):
    """Letters of every dimension."""
    words = dims.replace("(", "( ").replace(")", " )").split()
    groups, inside = [], False
    for word in words:
        if word == "(":
            groups.append([])
        elif word != ")":
            groups[-1].append(word) if inside else groups.append([word])
        inside = word == "(" or (inside and word != ")")
    return groups


class Case:
    """A random value with its label, and the same with every letter apart."""

    def __init__(self, dims, seed=0, sizes=SIZES, dtype=torch.float64):
        self.axes = {letter: Axis(size, letter) for letter, size in sizes.items()}
        self.groups = parse(dims)
        self.letters = [letter for group in self.groups for letter in group]
        self.label = tuple(tuple(Factor(self.axes[x]) for x in group) for group in self.groups)
        generator = torch.Generator().manual_seed(seed)
        shape = [sizes[x] for x in self.letters]
        self.apart = torch.randn(shape, generator=generator, dtype=dtype)
        self.value = self.closed(self.apart)
        self.at = next((d, g.index("n")) for d, g in enumerate(self.groups) if "n" in g)

    def opened(self, value=None, offered=None, batch=True):
        return open_factors(
            self.value if value is None else value,
            self.label,
            self.at,
            self.axes["b"] if batch else None,
            AxisTable(),
            lambda label: [math.prod(f.size for f in dim) for dim in label],
            offered,
        )

    def closed(self, apart):
        """One dimension for each group again."""
        sizes = iter(apart.shape)
        return apart.reshape([math.prod(next(sizes) for _ in group) for group in self.groups])

    def rows(self, apart):
        """`[batch, tokens, ..]` view."""
        return apart.movedim((self.letters.index("b"), self.letters.index("n")), (0, 1))

    def back(self, rows):
        """The inverse of `rows`, closed."""
        places = (self.letters.index("b"), self.letters.index("n"))
        return self.closed(rows.movedim((0, 1), places))


def per_sample(function, rows):
    """Stack of a function of each sample's `[tokens, ..]`."""
    return torch.stack([function(b, rows[b]) for b in range(rows.shape[0])])


@pytest.mark.parametrize("dims", LAYOUTS)
@pytest.mark.parametrize("shared", [True, False])
def test_take(dims, shared):
    case = Case(dims)
    index = torch.randint(0, 5, (1 if shared else 3, 2))
    want = per_sample(lambda b, row: row[index[0 if shared else b]], case.rows(case.apart))
    torch.testing.assert_close(take(case.opened(), index), case.back(want))


def segments(rows, tokens=5, count=3):
    """Random segments, each with a member, and shares that sum to one."""
    kept = torch.stack([torch.randperm(tokens)[:count] for _ in range(rows)])
    segment = torch.randint(0, count, (rows, tokens)).scatter(1, kept, torch.arange(count)[None].expand(rows, -1))  # fmt: skip  # noqa: E501
    moved = torch.tensor([sorted(set(range(tokens)) - set(row.tolist())) for row in kept])
    raw = torch.rand(rows, tokens, dtype=torch.float64) + 0.1
    total = torch.zeros(rows, count, dtype=torch.float64).scatter_add(1, segment, raw)
    return Segment(segment, raw / total.gather(1, segment), kept, moved)


@pytest.mark.parametrize("dims", LAYOUTS)
@pytest.mark.parametrize("shared", [True, False])
def test_merge(dims, shared):
    case, how = Case(dims), segments(1 if shared else 3)

    def slow(b, row):
        segment, weights = (x[0 if shared else b] for x in (how.segment, how.weights))
        return torch.stack(
            [sum(weights[i] * row[i] for i in range(5) if segment[i] == s) for s in range(3)]
        )

    want = per_sample(slow, case.rows(case.apart))
    torch.testing.assert_close(merge(case.opened(), how), case.back(want))


@pytest.mark.parametrize("dims", LAYOUTS)
@pytest.mark.parametrize("shared", [True, False])
def test_combine(dims, shared):
    case = Case(dims)
    weights = torch.randn(1 if shared else 3, 2, 5, dtype=torch.float64)

    def slow(b, row):
        mine = weights[0 if shared else b]
        return torch.stack([sum(mine[j, i] * row[i] for i in range(5)) for j in range(2)])

    want = per_sample(slow, case.rows(case.apart))
    torch.testing.assert_close(combine(case.opened(), weights), case.back(want))


@pytest.mark.parametrize("dims", LAYOUTS)
@pytest.mark.parametrize("shared", [True, False])
def test_write_back(dims, shared):
    """Tokens return to the places they were taken from, in a longer value."""
    case, saved = Case(dims), Case(dims, seed=1)
    index = torch.stack([torch.randperm(5)[:2] for _ in range(1 if shared else 3)])
    short = Case(dims, seed=2, sizes=SIZES | {"n": 2})
    got = write_back(short.opened(), saved.opened(), index)
    want = case.rows(saved.apart).clone()
    for b in range(3):
        want[b, index[0 if shared else b]] = short.rows(short.apart)[b]
    torch.testing.assert_close(got, case.back(want))


@given(st.integers(1, 5), st.integers(0, 1000))
def test_take_then_write_back_is_the_identity(count, seed):
    torch.manual_seed(seed)
    case = Case("(b n) c", seed)
    index = torch.stack([torch.randperm(5)[:count] for _ in range(3)])
    short = Case("(b n) c", sizes=SIZES | {"n": count})
    short.value = take(case.opened(), index)
    assert torch.equal(write_back(short.opened(), case.opened(), index), case.value)


def test_side_operand_grows_a_batch_dimension():
    """`[1, 1, n, c]` indexed for each sample becomes `[b, 1, n', c]`."""
    case = Case("b n c")
    table, index = torch.randn(1, 1, 5, 4), torch.randint(0, 5, (3, 2))
    axes = case.axes
    label = ((), (), (Factor(axes["n"]),), (Factor(axes["c"]),))
    offered = ((Factor(axes["b"]),), (Factor(axes["h"]),), *label[2:])
    case.label, case.at = label, (2, 0)
    got = take(case.opened(table, offered), index)
    assert torch.equal(got, torch.stack([table[0][:, index[b]] for b in range(3)]))


def test_missing_dimensions_are_grown_too():
    """`[n, c]` meets `[b, n, c]`."""
    case = Case("b n c")
    table, index = torch.randn(5, 4), torch.randint(0, 5, (3, 2))
    offered, case.label, case.at = case.label, case.label[1:], (0, 0)
    got = take(case.opened(table, offered), index)
    assert torch.equal(got, table[index])


def test_both_dimensions_of_a_bias():
    """`[1, h, n, n]` becomes `[b, h, n', n']`, one dimension after the other."""
    case = Case("b n c")
    bias, index = torch.randn(1, 2, 5, 5), torch.randint(0, 5, (3, 2))
    heads, tokens = Factor(case.axes["h"]), Factor(case.axes["n"])
    case.label, case.at = ((), (heads,), (tokens,), (tokens,)), (2, 0)
    offered = ((Factor(case.axes["b"]),), (heads,), (tokens,), (tokens,))
    rows = take(case.opened(bias, offered), index)
    case.label, case.at = offered, (3, 0)
    got = take(case.opened(rows), index)
    want = torch.stack([bias[0][:, index[b]][:, :, index[b]] for b in range(3)])
    assert torch.equal(got, want)


def test_no_place_for_a_batch():
    case = Case("b n c")
    case.label, case.at = case.label[1:], (0, 0)
    opened = case.opened(torch.randn(5, 4))
    index, weights = torch.randint(0, 5, (3, 2)), torch.randn(3, 2, 5)
    for act in (lambda: take(opened, index), lambda: merge(opened, segments(3)),
                lambda: combine(opened, weights)):  # fmt: skip
        with pytest.raises(Unalignable):
            act()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_merging_keeps_the_dtype_and_sums_in_more(dtype):
    """A thousand small halves: a sum in half precision would stop growing."""
    case = Case("b n c", sizes={"b": 1, "n": 1024, "c": 1}, dtype=torch.float64)
    value = torch.full((1, 1024, 1), 1.0, dtype=dtype)
    place = torch.zeros(1, 1024, dtype=torch.long)
    share = torch.full((1, 1024), 1 / 1024)
    how = Segment(place, share, torch.zeros(1, 1).long(), torch.arange(1, 1024)[None])
    got = merge(case.opened(value), how)
    assert got.dtype == dtype and torch.equal(got, torch.ones(1, 1, 1, dtype=dtype))
