"""ReLU above a cut that each row's own mean and deviation set: statistical top-k.

Gemma 3n's sparse MLP layers keep the share of neurons that a normal distribution has above
mean + deviations * deviation (You et al., "Spark Transformer", 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator
from tokenpass.ops.sparse_list import DTYPES, check_matrix, product
from tokenpass.shapes import Float

NAME = "row_stats_relu"
CALLS = 10
"""Calls into torch that the reference makes; a test counts them."""


def row_stats_relu(
    x: Float[Tensor, "rows columns"], deviations: float
) -> Float[Tensor, "rows columns"]:
    """relu(x - (mean + deviations * std)), each row's own mean and population deviation.

    Computed in float32, rounded once to x's dtype. A row with NaN or an infinity is NaN where x and
    the cut do not differ by a number. Gradients are refused.
    """
    return torch.ops.tokenpass.row_stats_relu.default(x, deviations)


def reference(x: Tensor, deviations: float) -> Tensor:
    """`row_stats_relu` in plain torch."""
    check(x, deviations)
    wide = x.float()
    if x.shape[1] == 0:
        return torch.empty_like(x)
    mean = wide.mean(1, keepdim=True)
    apart = wide - mean
    deviation = apart.square().mean(1, keepdim=True).sqrt()
    return torch.relu(wide - (mean + deviations * deviation)).to(x.dtype, copy=True)


def check(x: Tensor, deviations: float) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    check_matrix(NAME, "x", x, (None, None))


def fake(x: Tensor, deviations: float) -> Tensor:
    """Shape and dtype of the output."""
    check(x, deviations)
    return x.new_empty(x.shape)


def cost(x: Tensor, deviations: float) -> OpCost:
    """Sum, squares, and the cut for each element."""
    elements = product(*x.shape)
    return OpCost(work="reduction", flops=6 * elements, dims=(elements,), weight=2.0, calls=CALLS)


def example(
    generator: torch.Generator, dtype: torch.dtype, *, rows: int, columns: int
) -> tuple[Tensor, float]:
    """Arguments of one call: rows of different scales, any cut."""
    deviations = float(torch.rand(1, generator=generator)) * 3 - 1
    scale = torch.rand(rows, 1, generator=generator) * 3
    x = torch.randn(rows, columns, generator=generator) * scale + scale
    return x.to(dtype), deviations


OPERATOR = Operator(
    name=NAME,
    schema="(Tensor x, float deviations) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"rows": range(1, 10), "columns": range(1, 100)},
    dtypes=DTYPES,
    gradient="refused",
)
