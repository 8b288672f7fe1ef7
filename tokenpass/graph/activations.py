"""Which activation some elementwise operators make together: told by what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x) ** 2,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
"""Activations by name; another spelling of one is the same function."""

CLOSE = 1e-6
"""Constants are often written with few digits; the nearest two functions differ by 1e-3."""

POINTS = 97
SCALE = 2.5


class Unreadable(Exception):
    """Operators that cannot be computed from the given values alone."""


def grid() -> Tensor:
    """Inputs on which functions are compared."""
    return torch.linspace(-6, 6, POINTS, dtype=torch.float64)


def computed(
    nodes: Sequence[Node], given: Mapping[Node, Tensor], same: Callable[[Node], bool]
) -> Tensor:
    """The last node's value from the given ones, entry by entry; `same`: nodes that only copy.

    Raises `Unreadable` where another value enters, or an operator takes no such values.
    """
    known = dict(given)
    with torch.no_grad(), _disable_current_modes():
        for node in nodes:
            if any(source not in known for source in node.all_input_nodes):
                raise Unreadable
            if same(node):
                known[node] = known[node.all_input_nodes[0]]
                continue
            args, kwargs = map_arg((node.args, node.kwargs), lambda source: known[source])
            known[node] = called(node.target, args, kwargs)
    return known[nodes[-1]]


def called(target: Any, args: Any, kwargs: Any) -> Tensor:
    """One operator on plain values."""
    try:
        return target(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise Unreadable from error


def name_of(value: Tensor) -> str:
    """The activation that gives these values on the grid; empty if none is known."""
    for name, function in ACTIVATIONS.items():
        if torch.allclose(value, function(grid()), rtol=CLOSE, atol=CLOSE):
            return name
    return ""


def name_of_gated(value: Callable[[Tensor, Tensor], Tensor]) -> str:
    """The activation f with `value(g, u) = f(g) u`; empty if there is none that is known."""
    one = value(grid(), torch.ones(POINTS, dtype=torch.float64))
    more = value(grid(), torch.full((POINTS,), SCALE, dtype=torch.float64))
    return name_of(one) if torch.allclose(more, SCALE * one, rtol=CLOSE, atol=CLOSE) else ""
