"""What integers say about the order of rows: facts beside labels, which say what dimensions count.

A sort of keys over rows puts them in an order of its own; what it gives counts the same rows by
axes of their own (`Order.twins`). Numbers of rows and counts of keys change when there are fewer
rows: a value that holds them may be used as such and in no other way.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from tokenpass.graph.axis import Axis, Dim, Label, Unalignable, factors

aten = torch.ops.aten


@dataclass(frozen=True)
class Places:
    """Numbers of rows of a dimension that counts `into`, row-major.

    `own`: for each factor of `into` the axis of the value's own label that is cut as it is.
    """

    into: Dim
    own: tuple[Axis, ...]


@dataclass(frozen=True)
class Tally:
    """How often each of 0, 1, .. occurs among `keys`; `ends`: totals up to it, itself included."""

    keys: Node
    ends: bool = False


Meaning = Places | Tally


def cut_like(places: Places, label: Label) -> Dim:
    """What places count, cut as the factors of their own label are."""
    cuts = {factor.axis.root: factor.cut for factor in factors(label)}
    if not all(axis.root in cuts for axis in places.own):
        raise Unalignable("numbers of rows were arranged in another way")
    pairs = zip(places.into, places.own, strict=True)
    return tuple(replace(f, cut=cuts[axis.root]) for f, axis in pairs)


SAME_ENTRIES = frozenset(
    {
        aten.to.dtype,
        aten.to.dtype_layout,
        aten._to_copy.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.detach.default,
        aten.clone.default,
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.dim,
        aten.unsqueeze.default,
    }
)
"""Operators whose result has the entries of their input, in its order."""


def keys_of(node: Node) -> Node:
    """The value whose entries these are, seen through copies and sorts of them."""
    while True:
        source = entries_from(node)
        if source is None:
            return node
        node = source


def entries_from(node: Node) -> Node | None:
    """The input that a value has the same entries as, in whatever order; None if there is none."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None
    if node.target in SAME_ENTRIES:
        return source
    if node.target is operator.getitem and is_sort(source) and node.args[1] == 0:
        return source.args[0] if isinstance(source.args[0], Node) else None
    if node.target is aten.index.Tensor:
        order = sorting(node.args[1])
        return source if order is not None and keys_of(order) is keys_of(source) else None
    return None


def is_sort(node: Node) -> bool:
    """Whether a call sorts, and gives the entries and their former places."""
    return node.target in (aten.sort.default, aten.sort.stable)


def sorting(indices: object) -> Node | None:
    """The value that a single index sorts, where it is a sort's or an `argsort`'s."""
    if not isinstance(indices, list | tuple) or len(indices) != 1:
        return None
    (index,) = indices
    if not isinstance(index, Node) or not index.args or not isinstance(index.args[0], Node):
        return None
    if index.target is operator.getitem and is_sort(index.args[0]) and index.args[1] == 1:
        index = index.args[0]
    elif index.target is not aten.argsort.default:
        return None
    return index.args[0] if isinstance(index.args[0], Node) else None
