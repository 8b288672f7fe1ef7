"""What each ATen operator costs: one table from operator to cost rule.

A rule is called like the operator itself, with fake tensors, and with the fake result first:
`rule(out, *args, **kwargs) -> OpCost`. Operators of our own bring a rule of the same form beside
their schema; it reaches `op_cost` through the `own` mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx

from tokenpass.cost.sizes import (
    ZERO,
    elements,
    extent,
    product,
    shares_storage,
    tensors_in,
    value_of,
)
from tokenpass.ops.cost_record import OpCost, Work

CostRule = Callable[..., OpCost]

FREE = OpCost(work="view")


def _matrix(
    batch: sympy.Expr, m: sympy.Expr, n: sympy.Expr, k: sympy.Expr, adds: sympy.Expr = ZERO
) -> OpCost:
    """batch products of [m, k] by [k, n]: 2 batch m n k flops, and `adds` for a bias."""
    work: Work = "gemm" if batch == 1 else "bmm"
    return OpCost(work=work, flops=2 * batch * m * n * k + adds, dims=(batch, m, n, k))


def linear(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> OpCost:
    """x [..., k] by weight [n, k]: m is the product of x's leading dimensions."""
    n, k = extent(weight.shape[0]), extent(weight.shape[1])
    m = product(x.shape[:-1])
    return _matrix(sympy.Integer(1), m, n, k, m * n if bias is not None else ZERO)


def matmul(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> OpCost:
    """a [..., m, k] by b [..., k, n] with broadcasting; a 2-d b is one product, batch folded."""
    k = extent(a.shape[-1])
    if b.dim() <= 2:
        n = extent(b.shape[1]) if b.dim() == 2 else sympy.Integer(1)
        return _matrix(sympy.Integer(1), product(a.shape[:-1]), n, k)
    m = extent(a.shape[-2]) if a.dim() > 1 else sympy.Integer(1)
    batch = product(out.shape[: out.dim() - 2] if a.dim() > 1 else out.shape[:-1])
    return _matrix(batch, m, extent(b.shape[-1]), k)


def addmm(
    out: torch.Tensor, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **_: Any
) -> OpCost:
    """bias + a b, for `addmm` [m, k] x [k, n] and `baddbmm` with a batch in front."""
    cost = matmul(out, a, b)
    return OpCost(work=cost.work, flops=cost.flops + elements(out), dims=cost.dims)


def convolution(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any
) -> OpCost:
    """As a GEMM: m = batch * output positions, n = output channels, k = weights per output."""
    n, k = extent(weight.shape[0]), product(weight.shape[1:])
    m = extent(out.shape[0]) * product(out.shape[2:])
    return OpCost(work="conv", flops=2 * m * n * k, dims=(sympy.Integer(1), m, n, k))


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


def _over(work: Work, weight: float, read: bool = False) -> CostRule:
    """A rule that counts elements: of the result, or with `read` of the first tensor argument."""

    def rule(out: Any, *args: Any, **_: Any) -> OpCost:
        counted = tensors_in(list(args))[0] if read else tensors_in(out)[0]
        size = elements(counted)
        return OpCost(work=work, flops=size, dims=(size,), weight=weight)

    return rule


def _creation(out: Any, *_: Any, **__: Any) -> OpCost:
    size = elements(tensors_in(out)[0])
    return OpCost(work="pointwise", dims=(size,))


def _power(out: torch.Tensor, base: Any, exponent: Any = None, **_: Any) -> OpCost:
    """x ** 2 is one multiplication (as in an RMS norm); other exponents are transcendental."""
    return (POINTWISE if exponent == 2 else _over("special", 0.5))(out, base)


def _scatter(
    out: torch.Tensor, base: torch.Tensor, dim: int, index: torch.Tensor, *rest: Any, **_: Any
) -> OpCost:
    """Atomic updates: as many as the source has elements (or the index, for a scalar source)."""
    source = next((item for item in rest if isinstance(item, torch.Tensor)), index)
    size = elements(source)
    return OpCost(work="scatter", flops=size, dims=(size,))


def _sort(out: Any, x: torch.Tensor, *_: Any, **__: Any) -> OpCost:
    size = elements(x)
    return OpCost(work="sort", flops=size, dims=(size,))


def _free(*_: Any, **__: Any) -> OpCost:
    return FREE


POINTWISE = _over("pointwise", 1.0)
SPECIAL = _over("special", 1.0)

# One line per operator name (all overloads): its rule. `special` is measured as one erf-GELU,
# `reduction` as one layer norm over rows; weights are passes over the data relative to those.
COST_RULES: Mapping[str, CostRule] = {
    "linear": linear,
    "mm": matmul,
    "bmm": matmul,
    "matmul": matmul,
    "mv": matmul,
    "addmm": addmm,
    "baddbmm": addmm,
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "convolution": convolution,
    "scaled_dot_product_attention": attention,
    "softmax": _over("reduction", 1.5),
    "_softmax": _over("reduction", 1.5),
    "log_softmax": _over("reduction", 1.5),
    "layer_norm": _over("reduction", 1.0),
    "rms_norm": _over("reduction", 0.7),
    "group_norm": _over("reduction", 1.0),
    "sum": _over("reduction", 0.3, read=True),
    "mean": _over("reduction", 0.3, read=True),
    "var": _over("reduction", 0.6, read=True),
    "var_mean": _over("reduction", 0.6, read=True),
    "std": _over("reduction", 0.6, read=True),
    "amax": _over("reduction", 0.3, read=True),
    "amin": _over("reduction", 0.3, read=True),
    "max": _over("reduction", 0.5, read=True),
    "min": _over("reduction", 0.5, read=True),
    "argmax": _over("reduction", 0.5, read=True),
    "argmin": _over("reduction", 0.5, read=True),
    "any": _over("reduction", 0.3, read=True),
    "all": _over("reduction", 0.3, read=True),
    "cumsum": _over("reduction", 1.0, read=True),
    "linalg_vector_norm": _over("reduction", 0.3, read=True),
    "norm": _over("reduction", 0.3, read=True),
    "logsumexp": _over("reduction", 1.5, read=True),
    "normalize": _over("reduction", 0.7),
    "gelu": SPECIAL,
    "erf": SPECIAL,
    "tanh": SPECIAL,
    "pow": _power,
    "exp": _over("special", 0.5),
    "exp2": _over("special", 0.5),
    "log": _over("special", 0.5),
    "log1p": _over("special", 0.5),
    "sigmoid": _over("special", 0.5),
    "silu": _over("special", 0.6),
    "mish": SPECIAL,
    "softplus": SPECIAL,
    "sin": SPECIAL,
    "cos": SPECIAL,
    "sqrt": _over("pointwise", 2.0),
    "rsqrt": _over("pointwise", 2.0),
    "cat": POINTWISE,
    "stack": POINTWISE,
    "pad": POINTWISE,
    "constant_pad_nd": POINTWISE,
    "roll": POINTWISE,
    "repeat": POINTWISE,
    "repeat_interleave": _over("gather", 1.0),
    "clone": POINTWISE,
    "contiguous": POINTWISE,
    "reshape": POINTWISE,
    "flatten": POINTWISE,
    "_to_copy": POINTWISE,
    "to": POINTWISE,
    "type_as": POINTWISE,
    "copy": POINTWISE,
    "copy_": POINTWISE,
    "masked_fill": POINTWISE,
    "where": POINTWISE,
    "tril": POINTWISE,
    "triu": POINTWISE,
    "one_hot": POINTWISE,
    "embedding": _over("gather", 1.0),
    "index": _over("gather", 1.0),
    "index_select": _over("gather", 1.0),
    "gather": _over("gather", 1.0),
    "take_along_dim": _over("gather", 1.0),
    "scatter": _scatter,
    "scatter_": _scatter,
    "scatter_add": _scatter,
    "scatter_add_": _scatter,
    "scatter_reduce": _scatter,
    "scatter_reduce_": _scatter,
    "index_add": _scatter,
    "index_add_": _scatter,
    "index_copy": _scatter,
    "index_copy_": _scatter,
    "index_put": POINTWISE,
    "index_put_": POINTWISE,
    "sort": _sort,
    "argsort": _sort,
    "topk": _sort,
    "arange": _creation,
    "zeros": _creation,
    "ones": _creation,
    "full": _creation,
    "empty": _free,
    "zeros_like": _creation,
    "ones_like": _creation,
    "full_like": _creation,
    "new_ones": _creation,
    "new_zeros": _creation,
    "new_full": _creation,
    "scalar_tensor": _creation,
    "lift_fresh_copy": _free,
    "detach_": _free,
    "dropout": _free,
    "sym_size": _free,
    "_assert_async": _free,
    "_assert_tensor_metadata": _free,
}


def op_cost(node: fx.Node, own: Mapping[Any, CostRule]) -> tuple[OpCost, bool]:
    """The cost of one traced call, and whether a rule (or the pointwise tag) is known for it.

    A call whose result shares the storage of an argument moves nothing and is free, whatever its
    operator. An unknown operator counts one pass over its result; the caller lists it.
    """
    out = value_of(node)
    results = tensors_in(out)
    if node.op != "call_function" or not results:
        return FREE, True
    args, kwargs = value_of(node.args), {key: value_of(arg) for key, arg in node.kwargs.items()}
    if node.target in own:
        return own[node.target](out, *args, **kwargs), True
    if not isinstance(node.target, torch._ops.OpOverload):
        is_python = not isinstance(node.target, torch._ops.OperatorBase)
        return (FREE, True) if is_python else (POINTWISE(out), False)
    arguments = tensors_in([*args, *kwargs.values()])
    if not node.target._schema.is_mutable and shares_storage(results[0], arguments):
        return FREE, True
    rule = _rule(node.target)
    return (rule or POINTWISE)(out, *args, **kwargs), rule is not None


def _rule(operator: torch._ops.OpOverload) -> CostRule | None:
    if operator.namespace == "aten":
        name = operator._schema.name.removeprefix("aten::")
        rule = COST_RULES.get(name) or COST_RULES.get(name.removesuffix("_"))
        if rule is not None:
            return rule
    return POINTWISE if torch.Tag.pointwise in operator.tags else None
