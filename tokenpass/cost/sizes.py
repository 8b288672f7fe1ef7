"""Sizes of traced values as sympy expressions: what every cost rule and fusion group reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sympy
import torch
from torch import fx

ONE = sympy.Integer(1)
ZERO = sympy.Integer(0)


def extent(size: int | torch.SymInt) -> sympy.Expr:
    """One dimension as an expression of the graph's symbols (an integer when it is concrete)."""
    if isinstance(size, torch.SymInt):
        return size.node.expr
    return sympy.Integer(size)


def product(sizes: Iterable[int | torch.SymInt]) -> sympy.Expr:
    """The product of dimensions; the concrete ones are multiplied as plain integers first."""
    concrete = 1
    symbolic: list[sympy.Expr] = []
    for size in sizes:
        if isinstance(size, int):
            concrete *= size
        else:
            symbolic.append(extent(size))
    return sympy.Mul(sympy.Integer(concrete), *symbolic)


def elements(value: torch.Tensor) -> sympy.Expr:
    """Number of elements of a value."""
    return product(value.shape)


def value_of(argument: Any) -> Any:
    """What an argument of a node is at trace time: a node's recorded value, or itself."""
    if isinstance(argument, fx.Node):
        return argument.meta.get("val")
    if isinstance(argument, (list, tuple)):
        return type(argument)(value_of(item) for item in argument)
    return argument


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors of a possibly nested output value, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def bytes_of(value: Any) -> sympy.Expr:
    """Bytes of all tensors of a value."""
    return sympy.Add(*(elements(item) * item.element_size() for item in tensors_in(value)))


def shares_storage(value: torch.Tensor, others: Sequence[torch.Tensor]) -> bool:
    """Whether `value` is a view of one of `others`; true for fake tensors as for real ones."""
    return any(
        torch._C._is_alias_of(value, other)  # pyright: ignore[reportAttributeAccessIssue]
        for other in others
    )


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`: the key of a profile's tables."""
    return str(dtype).removeprefix("torch.")
