"""Spellings that have a simpler one: decompositions that capture applies while it traces.

What is left needs fewer rules, and regions are found in it: attention written with `einsum` or
`baddbmm` becomes products, copies of key heads become an expansion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def einsum(equation: str, tensors: Sequence[Tensor], *, path: Any = None) -> Any:
    """Two operands: one batched product, `[batch.., left.., sum..] x [batch.., sum.., right..]`.

    Letters that both operands and the result have are batch, those of both alone are summed over.
    """
    parsed = product_of(equation, tensors)
    if parsed is None:
        return NotImplemented
    left, right, out = parsed
    batch = [x for x in left if x in right and x in out]
    summed = [x for x in left if x in right and x not in out]
    rows = [x for x in left if x not in right]
    columns = [x for x in right if x not in left]
    sizes = dict(zip(left, tensors[0].shape, strict=True))
    sizes |= {x: n for x, n in zip(right, tensors[1].shape, strict=True) if x not in sizes}
    first = arranged(tensors[0], left, [batch, rows, summed])
    second = arranged(tensors[1], right, [batch, summed, columns])
    product = torch.matmul(first, second)
    product = product.reshape([sizes[x] for x in [*batch, *rows, *columns]])
    order = [*batch, *rows, *columns]
    places = [order.index(x) for x in out]
    return product if places == sorted(places) else product.permute(places)


def product_of(equation: str, tensors: Sequence[Tensor]) -> tuple[str, str, str] | None:
    """(left, right, result) letters of a product that `einsum` above covers; else None."""
    if len(tensors) != 2 or "." in equation or "->" not in equation:
        return None
    inputs, out = equation.replace(" ", "").split("->")
    left, right = inputs.split(",")
    plain = all(len(set(x)) == len(x) for x in (left, right, out))
    used = all(x in out or (x in left and x in right) for x in left + right)
    fits = all(t.dim() == len(x) for t, x in zip(tensors, (left, right), strict=True))
    summed = any(x in right and x not in out for x in left)
    wide = all(
        tensors[0].shape[left.index(x)] == tensors[1].shape[right.index(x)]
        for x in left
        if x in right
    )
    return (left, right, out) if plain and used and fits and summed and wide else None


def arranged(x: Tensor, letters: str, groups: Sequence[Sequence[str]]) -> Tensor:
    """Dimensions in the order of groups; batch letters stay apart, other groups become one."""
    order = [letters.index(letter) for group in groups for letter in group]
    moved = x if order == sorted(order) else x.permute(order)
    apart = len(groups[0])
    if all(len(group) == 1 for group in groups[1:]):
        return moved
    sizes, start = list(moved.shape[:apart]), apart
    for group in groups[1:]:
        sizes.append(math.prod(moved.shape[start : start + len(group)]))
        start += len(group)
    return moved.reshape(sizes)


def baddbmm(
    bias: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """`beta * bias + alpha * (first @ second)`."""
    product = torch.bmm(first, second)
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return (bias if beta == 1 else bias * beta) + product


def repeat_interleave(
    x: Tensor, repeats: int, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """Every entry along a dimension `repeats` times: a new dimension, expanded and joined."""
    if dim is None:
        x, dim = x.reshape(-1), 0
    dim %= x.dim()
    shape = list(x.shape)
    copies = x.unsqueeze(dim + 1).expand([*shape[: dim + 1], repeats, *shape[dim + 1 :]])
    shape[dim] = shape[dim] * repeats
    return copies.reshape(shape)


def index_select(x: Tensor, dim: int, index: Tensor) -> Any:
    """Entries along one dimension by index."""
    if x.dim() == 0 or index.dim() != 1:
        return NotImplemented
    return aten.index.Tensor(x, [*(None for _ in range(dim % x.dim())), index])


def outer(left: Tensor, right: Tensor) -> Tensor:
    """`left[i] * right[j]`."""
    return left[:, None] * right[None, :]


def same_shape(x: Tensor, other: Tensor) -> Tensor:
    """`x` in another's shape."""
    return x.reshape(other.shape)


def expanded_like(x: Tensor, other: Tensor) -> Tensor:
    """`x` repeated to another's shape."""
    return x.expand(other.shape)


def matrix_transpose(x: Tensor) -> Tensor:
    """The last two dimensions swapped."""
    return x.transpose(-2, -1)


def concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Another name of `cat`."""
    return torch.cat(list(tensors), dim)


def multiplied(left: Tensor, right: Tensor) -> Tensor:
    """Another name of `mul`."""
    return left * right


NORMAL_FORM: dict[Any, Callable[..., Any]] = {
    aten.einsum.default: einsum,
    aten.baddbmm.default: baddbmm,
    aten.repeat_interleave.self_int: repeat_interleave,
    aten.index_select.default: index_select,
    aten.outer.default: outer,
    aten.reshape_as.default: same_shape,
    aten.view_as.default: same_shape,
    aten.expand_as.default: expanded_like,
    aten.concat.default: concatenated,
    aten.mT.default: matrix_transpose,
    aten.multiply.Tensor: multiplied,
}
"""Overload -> the same in simpler operators; `NotImplemented` leaves a call as it is."""
