"""Example calls of collectives, over two ranks that hold the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .rule_language import Example, T, alone, ex

ranks, autograd_ranks = torch.ops._c10d_functional, torch.ops._c10d_functional_autograd
WORLD = "0"
"""The name of the first process group."""

GATHERED = [
    ex(T("b n c"), 2, WORLD),
    ex(T("n b c"), 2, WORLD, tokens="restored"),
    ex(T("b c n"), 2, WORLD),
    ex(T("(b n) c"), 2, WORLD, tokens="restored"),
]
SCATTERED = [
    ex(T("2 b n c"), "sum", 2, WORLD),
    ex(T("2 n b c"), "sum", 2, WORLD),
    ex(T("(2 b) n c"), "sum", 2, WORLD, tokens="samples"),
    ex(T("(2 n) b c"), "sum", 2, WORLD, tokens="restored"),
]

RANKS: Mapping[Any, list[Example]] = {
    ranks.all_reduce.default: alone("sum", WORLD),
    ranks.broadcast.default: alone(0, WORLD),
    ranks.wait_tensor.default: alone(kept=True),
    ranks.all_gather_into_tensor.default: GATHERED,
    autograd_ranks.all_gather_into_tensor.default: GATHERED,
    ranks.reduce_scatter_tensor.default: SCATTERED,
    autograd_ranks.reduce_scatter_tensor.default: SCATTERED,
}
