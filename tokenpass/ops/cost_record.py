"""What one operator call costs, as sympy expressions of the graph's sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import sympy

Work = Literal[
    "gemm",
    "bmm",
    "conv",
    "attention",
    "masked_attention",
    "pointwise",
    "special",
    "reduction",
    "gather",
    "scatter",
    "sort",
    "view",
    "few_rows",
    "listed_rows",
]


@dataclass(frozen=True)
class OpCost:
    """Cost of one call: arithmetic, and the sizes its efficiency depends on.

    `work` names the device-profile curve that applies; `flops` counts multiply and add apart;
    "few_rows" and "listed_rows" are products by kernels of ours that read a weight, or listed rows
    of one, at the speed of memory: like "gemm" where a profile does not know them.
    `dims` are the curve's arguments (gemm and its kin: batch, m, n, k; attention: batch*heads,
    queries, keys, head dim; everything else: elements). `weight` multiplies the elements, so that
    a cheaper or dearer operator shares a curve ("special" is exp and its kin). `calls` counts what
    is started one after the other: an operator of ours makes as many calls as its reference
    (where it has a kernel, the planner counts that). Bytes are not here: they belong to the fusion
    group, which knows what stays on chip; `unread` are those of its operands that are expected not
    to be read.
    """

    work: Work
    flops: sympy.Expr = sympy.Integer(0)
    dims: tuple[sympy.Expr, ...] = field(default=())
    weight: float = 1.0
    calls: int | sympy.Expr = 1
    unread: sympy.Expr = sympy.Integer(0)
