"""Axes: what the dimensions of a value count, as row-major lists of labelled factors.

`view(-1, C)` of a `[batch, tokens, C]` value has the dimensions `(batch, tokens), (C,)`. An axis is
found by following values through the graph, never by comparing sizes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import sympy
import torch
from torch.fx import Node

if TYPE_CHECKING:
    Size = int  # a SymInt acts as one; torch's own signatures do not name it
else:
    Size = int | torch.SymInt


def size_expr(size: Size) -> sympy.Expr:
    """The size as a sympy expression; never adds a guard."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def same_size(left: Size, right: Size) -> bool:
    """Whether two sizes are provably equal; never adds a guard."""
    return bool(sympy.expand(size_expr(left) - size_expr(right)) == 0)


class Cut(Protocol):
    """What a label knows of a reduction: that the axis now has `count` entries."""

    @property
    def count(self) -> Size: ...

    @property
    def parent(self) -> Cut | None: ...


@dataclass(eq=False)
class Axis:
    """One thing that a dimension counts. `constant`: all entries along it are equal.

    Axes found to count the same thing are joined: `root` is then one and the same.
    """

    size: Size
    name: str
    constant: bool = False
    joined: Axis | None = None

    @property
    def root(self) -> Axis:
        """The representative of all axes that were found to count the same thing."""
        axis = self
        while axis.joined is not None:
            axis = axis.joined
        return axis

    def __repr__(self) -> str:
        return f"{self.name}={self.size}" + ("~" if self.constant else "")


@dataclass(frozen=True)
class Factor:
    """One occurrence of an axis in a label; `cut` says how it was shortened, None if it was not.

    `extensive`: the value of a merged token is the sum over its members, as with attention
    probabilities along the keys; otherwise it is their mean, or is shared by them.
    """

    axis: Axis
    cut: Any = None
    extensive: bool = False

    @property
    def size(self) -> Size:
        """Entries left on this axis."""
        return self.axis.size if self.cut is None else self.cut.count


Dim = tuple[Factor, ...]
Label = tuple[Dim, ...]


class AxisTable:
    """Makes axes (the same one for the same key) and joins those found to be one.

    `wholes`: (groups, entries of a group) -> the axis that was split into them.
    `row_wise`: calls among rows that a sort put in order, where every row is shown to depend on
    itself alone (`row_sets.py`); `ordered_by`: axes of such an order, with the ascending keys.
    """

    def __init__(self) -> None:
        self._fresh: dict[Hashable, Axis] = {}
        self.wholes: dict[tuple[Axis, Axis], Axis] = {}
        self.row_wise: set[Node] = set()
        self.ordered_by: dict[Axis, Node | None] = {}

    def fresh(self, key: Hashable, size: Size, name: str, constant: bool = False) -> Axis:
        """The axis born at `key`; asking again gives the same axis."""
        if key not in self._fresh:
            self._fresh[key] = Axis(size, name, constant)
        return self._fresh[key]

    def split(self, axis: Axis, part: int, rest: int) -> tuple[Axis, Axis]:
        """An axis as `part` groups of `rest` entries; the same split gives the same axes."""
        key, constant = (axis, part), axis.constant
        high = self.fresh((key, "high"), part, f"{axis.name}/{rest}", constant)
        low = self.fresh((key, "low"), rest, f"{axis.name}%{rest}", constant)
        self.wholes[high, low] = axis
        return high, low

    def unite(self, left: Axis, right: Axis) -> None:
        """State that entry i of one axis meets entry i of the other."""
        left, right = left.root, right.root
        if left is not right:
            right.joined = left


def factors(label: Label) -> Iterable[Factor]:
    """All factors in row-major order."""
    return (factor for dim in label for factor in dim)


def is_constant(dim: Dim) -> bool:
    """Whether some entries along a dimension are known to be equal."""
    return any(factor.axis.constant for factor in dim)


def has_cut(label: Label) -> bool:
    """Whether any axis of the value was shortened."""
    return any(factor.cut is not None for factor in factors(label))


def without_cuts(label: Label) -> Label:
    """The label that the value has at full length."""
    return tuple(tuple(replace(f, cut=None, extensive=False) for f in dim) for dim in label)


def find_axis(label: Label, axis: Axis) -> tuple[int, int] | None:
    """First occurrence of an axis, as (dimension, place in it); None if the value lacks it."""
    return next(iter(find_places(label, axis)), None)


def find_places(label: Label, axis: Axis) -> list[tuple[int, int]]:
    """All occurrences of an axis, as (dimension, place in it)."""
    return [
        (at, place)
        for at, dim in enumerate(label)
        for place, factor in enumerate(dim)
        if factor.axis.root is axis.root
    ]


def with_cut(label: Label, at: tuple[int, int], cut: Any) -> Label:
    """The label with the factor at one place shortened by `cut`."""
    dims = [list(dim) for dim in label]
    factor = dims[at[0]][at[1]]
    dims[at[0]][at[1]] = replace(factor, cut=cut, extensive=factor.extensive and cut is not None)
    return tuple(tuple(dim) for dim in dims)


def deeper(left: Any, right: Any) -> Any:
    """Of two cuts of one axis the later one; raises `Unalignable` if neither follows the other."""
    for late, early in ((left, right), (right, left)):
        step = late
        while step is not None and step is not early:
            step = step.parent
        if step is early:
            return late
    raise Unalignable("two values of one axis were shortened in unrelated ways")


class Unalignable(Exception):
    """Operands whose axes cannot be brought to one length: they are restored instead."""
