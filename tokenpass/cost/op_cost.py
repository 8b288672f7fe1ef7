"""What each ATen operator costs: one table from operator name to cost rule.

Operators of our own bring a rule of the same form beside their schema; it reaches `op_cost`
through the `own` mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from tokenpass.cost.cost_rules import (
    FREE,
    POINTWISE,
    SPECIAL,
    CostRule,
    addmm,
    attention,
    convolution,
    creation,
    free,
    grouped,
    linear,
    matmul,
    over,
    power,
    scatter,
    sort,
)
from tokenpass.cost.sizes import shares_storage, tensors_in, value_of
from tokenpass.ops.cost_record import OpCost

# One line per operator name (all overloads; with its namespace if it is not ATen's): its rule.
# `special` is measured as one erf-GELU, `reduction` as one layer norm over rows; weights are passes
# over the data relative to those.
COST_RULES: Mapping[str, CostRule] = {
    "linear": linear,
    "mm": matmul,
    "bmm": matmul,
    "matmul": matmul,
    "mv": matmul,
    "addmm": addmm,
    "baddbmm": addmm,
    "_grouped_mm": grouped,
    "transformers::grouped_mm_fallback": grouped,
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "convolution": convolution,
    "scaled_dot_product_attention": attention,
    "softmax": over("reduction", 1.7),
    "_softmax": over("reduction", 1.7),
    "log_softmax": over("reduction", 1.7),
    "layer_norm": over("reduction", 1.0),
    "rms_norm": over("reduction", 0.7),
    "group_norm": over("reduction", 1.0),
    "sum": over("reduction", 0.35, read=True),
    "mean": over("reduction", 0.35, read=True),
    "var": over("reduction", 0.6, read=True),
    "var_mean": over("reduction", 0.6, read=True),
    "std": over("reduction", 0.6, read=True),
    "amax": over("reduction", 0.3, read=True),
    "amin": over("reduction", 0.3, read=True),
    "max": over("reduction", 0.5, read=True),
    "min": over("reduction", 0.5, read=True),
    "argmax": over("reduction", 0.5, read=True),
    "argmin": over("reduction", 0.5, read=True),
    "any": over("reduction", 0.3, read=True),
    "all": over("reduction", 0.3, read=True),
    "cumsum": over("reduction", 1.0, read=True),
    "diff": POINTWISE,
    "floor_divide": POINTWISE,
    "adaptive_avg_pool1d": over("reduction", 0.35, read=True),
    "adaptive_avg_pool2d": over("reduction", 0.35, read=True),
    "avg_pool2d": over("reduction", 0.35, read=True),
    "max_pool2d": over("reduction", 0.5, read=True),
    "linalg_vector_norm": over("reduction", 0.3, read=True),
    "norm": over("reduction", 0.3, read=True),
    "logsumexp": over("reduction", 1.5, read=True),
    "normalize": over("reduction", 0.9),
    "gelu": SPECIAL,
    "erf": SPECIAL,
    "tanh": SPECIAL,
    "pow": power,
    "exp": over("special", 0.5),
    "exp2": over("special", 0.5),
    "log": over("special", 0.5),
    "log1p": over("special", 0.5),
    "sigmoid": over("special", 0.5),
    "silu": over("special", 0.6),
    "mish": SPECIAL,
    "softplus": SPECIAL,
    "sin": over("special", 0.5),
    "cos": over("special", 0.5),
    "sqrt": over("pointwise", 2.0),
    "rsqrt": over("pointwise", 2.0),
    "cat": POINTWISE,
    "stack": POINTWISE,
    "pad": POINTWISE,
    "constant_pad_nd": POINTWISE,
    "roll": POINTWISE,
    "repeat": POINTWISE,
    "repeat_interleave": over("gather", 1.0),
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
    "__and__": POINTWISE,
    "__or__": POINTWISE,
    "__xor__": POINTWISE,
    "tril": POINTWISE,
    "triu": POINTWISE,
    "one_hot": POINTWISE,
    "embedding": over("gather", 1.0),
    "index": over("gather", 1.0),
    "index_select": over("gather", 1.0),
    "gather": over("gather", 1.0),
    "take_along_dim": over("gather", 1.0),
    "scatter": scatter,
    "scatter_": scatter,
    "scatter_add": scatter,
    "scatter_add_": scatter,
    "scatter_reduce": scatter,
    "scatter_reduce_": scatter,
    "index_add": scatter,
    "index_add_": scatter,
    "index_copy": scatter,
    "index_copy_": scatter,
    "index_put": POINTWISE,
    "index_put_": POINTWISE,
    "sort": sort,
    "argsort": sort,
    "topk": sort,
    "arange": creation,
    "zeros": creation,
    "ones": creation,
    "full": creation,
    "empty": free,
    "empty_like": free,
    "new_empty": free,
    "zeros_like": creation,
    "ones_like": creation,
    "full_like": creation,
    "new_ones": creation,
    "new_zeros": creation,
    "new_full": creation,
    "scalar_tensor": creation,
    "lift_fresh_copy": free,
    "detach_": free,
    "dropout": free,
    "sym_size": free,
    "_assert_async": free,
    "_assert_tensor_metadata": free,
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
    name = operator._schema.name.removeprefix("aten::")
    rule = COST_RULES.get(name) or COST_RULES.get(name.removesuffix("_"))
    if rule is not None:
        return rule
    return POINTWISE if torch.Tag.pointwise in operator.tags else None
