"""Joining labels: broadcasting operands against each other, and regrouping factors for reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sympy

from tokenpass.graph.axis import (
    AxisTable,
    Dim,
    Factor,
    Label,
    Size,
    Unalignable,
    deeper,
    is_constant,
    same_size,
    size_expr,
)


def join_factors(left: Factor, right: Factor, table: AxisTable, linear: bool) -> Factor:
    """Two factors that meet entry by entry: the deeper cut, the axis that varies."""
    if not (left.axis.constant or right.axis.constant):
        table.unite(left.axis, right.axis)
    axis = right.axis if left.axis.constant else left.axis
    extensive = linear and (left.extensive or right.extensive)
    return Factor(axis, deeper(left.cut, right.cut), extensive)


def join_dims(dims: Sequence[Dim], table: AxisTable, linear: bool = True) -> Dim:
    """The dimension that broadcasting gives; where the factors differ, the coarser list wins.

    Of lists whose entries vary, that is: what is equal everywhere says nothing about the result.
    """
    dims = [dim for dim in dims if dim]
    if not dims:
        return ()
    varied = [dim for dim in dims if not all(factor.axis.constant for factor in dim)]
    out = min(varied or dims, key=len)
    for dim in dims:
        if dim is out:
            continue
        if len(dim) == len(out) and all(
            same_size(a.axis.size, b.axis.size) for a, b in zip(dim, out, strict=True)
        ):
            pairs = zip(out, dim, strict=True)
            out = tuple(join_factors(a, b, table, linear) for a, b in pairs)
        elif any(f.cut is not None for f in (*dim, *out)):
            raise Unalignable("dimensions of different factors meet after one was shortened")
        elif dim in varied and is_constant(out):
            raise Unalignable("a dimension is partly constant, and meets one of other factors")
    return out if linear else tuple(replace(f, extensive=False) for f in out)


def broadcast(labels: Sequence[Label], table: AxisTable, linear: bool = True) -> Label:
    """The label of operands broadcast against each other, aligned at the last dimension."""
    rank = max((len(label) for label in labels), default=0)
    padded = [((),) * (rank - len(label)) + label for label in labels]
    return tuple(join_dims([p[at] for p in padded], table, linear) for at in range(rank))


def broadcast_targets(labels: Sequence[Label], out: Label) -> list[Label]:
    """What each operand must look like to meet `out`, in the rank of `out`.

    Its own dims, cut as `out` is; where it has none (size 1 or missing), the dimension of `out`,
    uncut: an offer, taken when a per-sample cut makes the operand grow a batch dimension.
    """
    targets = []
    for label in labels:
        skip = len(out) - len(label)
        target = [
            follow(dim, out[skip + at]) if dim else offer(out[skip + at])
            for at, dim in enumerate(label)
        ]
        targets.append((*map(offer, out[:skip]), *target))
    return targets


def offer(dim: Dim) -> Dim:
    """A dimension as it may be given to an operand that lacks it."""
    return dim if all(factor.cut is None for factor in dim) else ()


def follow(dim: Dim, goal: Dim) -> Dim:
    """The dimension cut as `goal` is, or `goal` itself as an offer where all entries are equal.

    Factors that `goal` does not list stay as they are.
    """
    if is_constant(dim) and len(dim) == len(goal) == 1 and goal[0].cut is None:
        return goal  # entries that are all equal are as good as the other operand's
    if len(dim) != len(goal):
        if any(f.cut is not None for f in goal):
            raise Unalignable("an operand's dimension has other factors than the shortened one")
        return dim
    return tuple(replace(f, cut=g.cut) for f, g in zip(dim, goal, strict=True))


class Irregular(Unalignable):
    """A reshape whose dimensions do not split the factors evenly."""


def regroup(
    flat: Sequence[Factor], shape: Sequence[Size], table: AxisTable
) -> tuple[Label, list[Factor]]:
    """Distribute row-major factors over new dimensions; returns the factors that had to be split.

    Sizes are full ones, so the result holds for any cut of a factor that is not split.
    """
    queue, split, dims = list(flat), [], []
    for size in shape:
        want, got, dim = size_expr(size), sympy.Integer(1), []
        while sympy.expand(want - got) != 0:
            if not queue:
                raise Irregular("a reshape has more entries than its factors")
            factor = queue.pop(0)
            entries = size_expr(factor.axis.size)
            if divides(got * entries, want):
                dim.append(factor)
                got = sympy.expand(got * entries)
                continue
            part = sympy.cancel(want / got)
            if not divides(part, entries):
                raise Irregular("a reshape splits a dimension unevenly")
            high, low = split_factor(factor, part, table)
            split.append(factor)
            dim.append(high)
            queue.insert(0, low)
            got = want
        dims.append(tuple(dim))
    if queue:
        raise Irregular("a reshape has fewer entries than its factors")
    return tuple(dims), split


def divides(part: sympy.Expr, whole: sympy.Expr) -> bool:
    """Whether `whole / part` is provably an integer (sizes are positive integers)."""
    quotient = sympy.cancel(whole / part)
    if quotient.is_Integer:
        return True
    if quotient.is_Rational:
        return False
    numerator, denominator = sympy.fraction(quotient)
    return bool(denominator == 1) and all(c.is_integer for c in sympy.Poly(numerator).coeffs())


def split_factor(factor: Factor, part: sympy.Expr, table: AxisTable) -> tuple[Factor, Factor]:
    """Split one axis in (part, rest); the same split of the same axis gives the same axes."""
    axis = factor.axis.root
    rest = sympy.cancel(size_expr(axis.size) / part)
    if not (part.is_Integer and rest.is_Integer):
        raise Irregular("a reshape splits an axis of dynamic length")
    high, low = table.split(axis, int(part), int(rest))
    return Factor(high), Factor(low)
