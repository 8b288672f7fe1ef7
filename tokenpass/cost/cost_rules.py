"""Cost rules: what one call of an operator costs, from the shapes of its arguments and result.

A rule is called like the operator itself, with fake tensors, and with the fake result first:
`rule(out, *args, **kwargs) -> OpCost`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch

from tokenpass.cost.sizes import ONE, ZERO, elements, extent, product, tensors_in
from tokenpass.ops.cost_record import OpCost, Work

CostRule = Callable[..., OpCost]

FREE = OpCost(work="view")


def _matrix(
    batch: sympy.Expr, m: sympy.Expr, n: sympy.Expr, k: sympy.Expr, adds: sympy.Expr = ZERO
) -> OpCost:
    """Batch products of [m, k] by [k, n]: 2 batch m n k flops, and `adds` for a bias."""
    work: Work = "gemm" if batch == 1 else "bmm"
    return OpCost(work=work, flops=2 * batch * m * n * k + adds, dims=(batch, m, n, k))


def linear(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> OpCost:
    """X [..., k] by weight [n, k]: m is the product of x's leading dimensions."""
    n, k = extent(weight.shape[0]), extent(weight.shape[1])
    m = product(x.shape[:-1])
    return _matrix(ONE, m, n, k, m * n if bias is not None else ZERO)


def matmul(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> OpCost:
    """A [..., m, k] by b [..., k, n] with broadcasting; a 2-d b is one product, batch folded."""
    k = extent(a.shape[-1])
    if b.dim() <= 2:
        n = extent(b.shape[1]) if b.dim() == 2 else ONE
        return _matrix(ONE, product(a.shape[:-1]), n, k)
    m = extent(a.shape[-2]) if a.dim() > 1 else ONE
    batch = product(out.shape[: out.dim() - 2] if a.dim() > 1 else out.shape[:-1])
    return _matrix(batch, m, extent(b.shape[-1]), k)


def addmm(
    out: torch.Tensor, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **_: Any
) -> OpCost:
    """Bias + a b, for `addmm` [m, k] x [k, n] and `baddbmm` with a batch in front."""
    cost = matmul(out, a, b)
    return OpCost(work=cost.work, flops=cost.flops + elements(out), dims=cost.dims)


def grouped(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> OpCost:
    """Runs of x [m, k], each by its own of weight [groups, k, n]: m / groups rows on average."""
    groups, k, n = (extent(size) for size in weight.shape)
    m = extent(x.shape[0])
    return OpCost(work="bmm", flops=2 * m * n * k, dims=(groups, sympy.Max(1, m / groups), n, k))


def convolution(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any
) -> OpCost:
    """As a GEMM: m = batch * output positions, n = output channels, k = weights per output."""
    n, k = extent(weight.shape[0]), product(weight.shape[1:])
    m = extent(out.shape[0]) * product(out.shape[2:])
    return OpCost(work="conv", flops=2 * m * n * k, dims=(ONE, m, n, k))


def attention(
    out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> OpCost:
    """Fused attention, query [..., q, d], key [..., k, d], value [..., k, e].

    flops = 2 heads pairs (d + e), with pairs = q k, or, where `is_causal`, the pairs i >= j that
    the fused kernels visit (tiles above the diagonal are skipped). Grouped keys do not change the
    flops: every query head meets every key. A mask is read, and has a curve of its own.
    """
    heads = product(query.shape[:-2])
    queries, keys = extent(query.shape[-2]), extent(key.shape[-2])
    depth, depth_out = extent(query.shape[-1]), extent(value.shape[-1])
    pairs = _causal_pairs(queries, keys) if is_causal else queries * keys
    work: Work = "attention" if attn_mask is None else "masked_attention"
    flops = 2 * heads * pairs * (depth + depth_out)
    return OpCost(work=work, flops=flops, dims=(heads, queries, keys, depth))


def _causal_pairs(queries: sympy.Expr, keys: sympy.Expr) -> sympy.Expr:
    """Pairs (i, j), j <= i, counted from the top left as SDPA's `is_causal` counts them."""
    if queries == keys:
        return queries * (queries + 1) / 2
    square = sympy.Min(queries, keys)
    return square * (square + 1) / 2 + (queries - square) * keys


def over(work: Work, weight: float, read: bool = False) -> CostRule:
    """A rule that counts elements: of the result, or with `read` of the first tensor argument."""

    def rule(out: Any, *args: Any, **_: Any) -> OpCost:
        counted = tensors_in(list(args))[0] if read else tensors_in(out)[0]
        size = elements(counted)
        return OpCost(work=work, flops=size, dims=(size,), weight=weight)

    return rule


def creation(out: Any, *_: Any, **__: Any) -> OpCost:
    """New values: one write each."""
    size = elements(tensors_in(out)[0])
    return OpCost(work="pointwise", dims=(size,))


def power(out: torch.Tensor, base: Any, exponent: Any = None, **_: Any) -> OpCost:
    """X ** 2 is one multiplication (as in an RMS norm); other exponents are transcendental."""
    squared = isinstance(exponent, int | float) and exponent == 2
    return (POINTWISE if squared else over("special", 0.5))(out, base)


def scatter(
    out: torch.Tensor, base: torch.Tensor, dim: int, index: torch.Tensor, *rest: Any, **_: Any
) -> OpCost:
    """Atomic updates: as many as the source has elements (or the index, for a scalar source)."""
    source = next((item for item in rest if isinstance(item, torch.Tensor)), index)
    size = elements(source)
    return OpCost(work="scatter", flops=size, dims=(size,))


def sort(out: Any, x: torch.Tensor, *_: Any, **__: Any) -> OpCost:
    """Sorting: its own rate for each entry."""
    size = elements(x)
    return OpCost(work="sort", flops=size, dims=(size,))


def free(*_: Any, **__: Any) -> OpCost:
    """Views: nothing."""
    return FREE


POINTWISE = over("pointwise", 1.0)
SPECIAL = over("special", 1.0)
