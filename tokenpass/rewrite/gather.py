"""Moving values between lengths: taking tokens by index, merging them, and putting them back.

All functions act on one factor of a value's label, found as (dimension, place); the value is viewed
with every factor as a dimension of its own, so that `batch x tokens` in one dimension works alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tokenpass.graph.axis import Axis, AxisTable, Label, Size, Unalignable, is_constant
from tokenpass.graph.call import is_one
from tokenpass.rewrite.reduction import Segment, sums_in

Place = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Factored:
    """A value with every factor apart. `token`: its token dimension; `batch`: None if it has none.

    `grow`: a dimension of size 1 that may become the batch dimension. `close` regroups a result.
    """

    value: torch.Tensor
    token: int
    batch: int | None
    grow: int | None
    close: Callable[[torch.Tensor], torch.Tensor]


def open_factors(
    value: torch.Tensor,
    label: Label,
    at: Place,
    batch: Axis | None,
    table: AxisTable,
    shape: Callable[[Label], list[Size]],
    offered: Label | None = None,
) -> Factored:
    """View a value so that the factor at `at` and the batch have dimensions of their own.

    `offered`: a label of the same or higher rank that says which missing dimension the batch is.
    """
    if offered is not None and len(offered) > len(label):
        missing = len(offered) - len(label)
        value = value.reshape([1] * missing + list(value.shape))
        label, at = ((),) * missing + label, (at[0] + missing, at[1])
    groups = [max(1, len(dim)) for dim in label]
    token = sum(groups[: at[0]]) + at[1]
    batch_dim, grow = locate_batch(label, groups, batch, table, offered)
    if max(groups, default=1) == 1:
        return Factored(value, token, batch_dim, grow, lambda out: out)
    flat = [size for dim in label for size in (shape(tuple((f,) for f in dim)) or [1])]

    def close(out: torch.Tensor) -> torch.Tensor:
        sizes, start = [], 0
        for group in groups:
            size: Size = 1
            for entry in out.shape[start : start + group]:
                size = size * entry
            sizes.append(size)
            start += group
        return out.reshape(sizes)

    return Factored(value.reshape(flat), token, batch_dim, grow, close)


def locate_batch(
    label: Label,
    groups: list[int],
    batch: Axis | None,
    table: AxisTable,
    offered: Label | None,
) -> tuple[int | None, int | None]:
    """(dimension of the batch, dimension that may become it) in the factored view."""
    if batch is None:
        return None, None
    for at, dim in enumerate(label):
        for place, factor in enumerate(dim):
            if factor.axis.root is batch.root:
                return sum(groups[:at]) + place, None
    for at, dim in enumerate(offered or ()):
        if len(dim) != 1 or dim[0].axis.root is not batch.root:
            continue
        if not label[at]:
            return None, sum(groups[:at])
        if is_constant(label[at]) and len(label[at]) == 1:  # expanded: as good as a batch
            return sum(groups[:at]), None
    return None, None


def take(opened: Factored, index: torch.Tensor) -> torch.Tensor:
    """Entries by index, `[batch or 1, count]`; the value grows a batch dimension where needed."""
    value, token = opened.value, opened.token
    if is_one(index.shape[0]):
        return opened.close(torch.index_select(value, token, index[0]))
    batch = opened.batch
    if batch is None:
        if opened.grow is None:
            raise Unalignable("per-sample tokens meet a value without a place for a batch")
        batch = opened.grow
        sizes = [-1] * value.dim()
        sizes[batch] = index.shape[0]
        value = value.expand(sizes)
    return opened.close(torch.gather(value, token, spread_index(index, value, token, batch)))


def spread_index(index: torch.Tensor, value: torch.Tensor, token: int, batch: int) -> torch.Tensor:
    """`[batch, count]` indices expanded to the value's other dimensions."""
    if batch > token:
        index = index.transpose(0, 1)
    view: list[Size] = [1] * value.dim()
    first, second = sorted((token, batch))
    view[first], view[second] = index.shape[0], index.shape[1]
    sizes = list(value.shape)
    sizes[token] = index.shape[1] if batch < token else index.shape[0]
    return index.reshape(view).expand(sizes)


def merge(opened: Factored, how: Segment) -> torch.Tensor:
    """Weighted means of the tokens of each segment, in the value's dtype (sums in float32 or more).

    The tokens that stay are read in order, and only those that move are added to them.
    """
    value, token, batch = opened.value, opened.token, opened.batch
    if batch is None:
        if not is_one(how.segment.shape[0]):
            raise Unalignable("per-sample merging meets a value without a batch dimension")
        rows = value.movedim(token, 0)[None]
        return opened.close(merge_rows(rows, how)[0].movedim(0, token))
    rows = value.movedim((batch, token), (0, 1))
    return opened.close(merge_rows(rows, how).movedim((0, 1), (batch, token)))


def one_width(rows: torch.Tensor) -> torch.Tensor:
    """`[batch, tokens, ..]` as `[batch, tokens, width]`; a batch may be empty, where -1 is not."""
    return rows.reshape(rows.shape[0], rows.shape[1], math.prod(rows.shape[2:]))


def merge_rows(rows: torch.Tensor, how: Segment) -> torch.Tensor:
    """`out[b, s] = sum over i with segment[b, i] = s of weights[b, i] rows[b, i]`."""
    rest = list(rows.shape[2:])
    flat = one_width(rows)
    if is_one(how.segment.shape[0]):  # every sample agrees
        shared = (how.segment, how.weights, how.kept, how.moved)
        how = Segment(*(part.expand(rows.shape[0], -1) for part in shared))
    goal = torch.gather(how.segment, 1, how.moved)
    stay, move = weighted_rows(flat, how.kept, how), weighted_rows(flat, how.moved, how)
    out = stay.scatter_add(1, goal[..., None].expand(-1, -1, flat.shape[-1]), move)
    return out.to(rows.dtype).reshape([*out.shape[:2], *rest])


def weighted_rows(flat: torch.Tensor, index: torch.Tensor, how: Segment) -> torch.Tensor:
    """Some rows of `[batch, tokens, width]`, each times its share, as wide as the shares."""
    rows = torch.gather(flat, 1, index[..., None].expand(-1, -1, flat.shape[-1]))
    shares = torch.gather(how.weights, 1, index)[..., None]
    return rows.to(sums_in(rows)) * shares


def combine(opened: Factored, weights: torch.Tensor) -> torch.Tensor:
    """`[batch, out, in]` weights applied to the tokens of a value."""
    value, token, batch = opened.value, opened.token, opened.batch
    if batch is None:
        if not is_one(weights.shape[0]):
            raise Unalignable("per-sample weights meet a value without a batch dimension")
        rows = value.movedim(token, 0)[None]
        return opened.close(combine_rows(rows, weights)[0].movedim(0, token))
    rows = value.movedim((batch, token), (0, 1))
    return opened.close(combine_rows(rows, weights).movedim((0, 1), (batch, token)))


def combine_rows(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`out[b, j] = sum_i weights[b, j, i] rows[b, i]`."""
    out = torch.matmul(weights.to(rows.dtype), one_width(rows))
    return out.reshape([rows.shape[0], weights.shape[1], *rows.shape[2:]])


def write_back(opened: Factored, saved: Factored, index: torch.Tensor) -> torch.Tensor:
    """The saved long value with the short one's tokens written at `index`."""
    value, token, batch = opened.value, opened.token, opened.batch
    if is_one(index.shape[0]):
        return saved.close(torch.index_copy(saved.value, token, index[0], value))
    if batch is None:
        raise Unalignable("per-sample tokens meet a value without a batch dimension")
    places = spread_index(index, value, token, batch)
    return saved.close(torch.scatter(saved.value, token, places, value))
