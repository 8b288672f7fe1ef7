"""The table of token-axis rules: one line for each operator overload.

An overload that is not listed and not tagged pointwise is a barrier: streams are restored to full
length before it. To add an operator, add a line; the property tests of its kind then apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tokenpass.graph.attention_rule import Attention
from tokenpass.graph.call import Call
from tokenpass.graph.rule import Rule
from tokenpass.graph.rules_apart import (
    Detach,
    Factory,
    Fill,
    Like,
    Lookup,
    Normalise,
    Pointwise,
    Project,
)
from tokenpass.graph.rules_layout import (
    Components,
    Concatenate,
    Expand,
    Permute,
    Repeat,
    Reshape,
    listed_order,
    moved_order,
    reverse_order,
    swap_order,
)
from tokenpass.graph.rules_mixing import Contract, Convolve, Reduce, Softmax
from tokenpass.graph.rules_order import AddBack, Count, Divide, Groups, Order, PutBack
from tokenpass.graph.rules_position import AdvancedIndex, Along, Gather, Parts, Read
from tokenpass.graph.rules_ranks import rules_of_collectives

aten = torch.ops.aten


def one_dim(call: Call) -> list[int]:
    """The dimension that the argument `dim` names."""
    return [call.dim()]


def listed_dims(call: Call) -> list[int]:
    """The dimensions that the argument `dims` names (all, if it is empty)."""
    rank = len(call.operands[0].label)
    return [dim % rank for dim in call["dims"]] or list(range(rank))


def last_two(call: Call) -> list[int]:
    """The two dimensions of a matrix."""
    rank = len(call.operands[0].label)
    return [rank - 2, rank - 1]


def normalised(call: Call) -> list[int]:
    """The trailing dimensions of `layer_norm` and `rms_norm`."""
    rank = len(call.operands[0].label)
    return list(range(rank - len(call["normalized_shape"]), rank))


def all_but_batch(call: Call) -> list[int]:
    """Every dimension after the first."""
    return list(range(1, len(call.operands[0].label)))


def channels(call: Call) -> list[int]:
    """The second dimension; all of them where statistics are those of the call itself."""
    return list(range(len(call.operands[0].label))) if call["training"] else [1]


def padded_dims(call: Call) -> list[int]:
    """The dimensions that `pad` touches: pairs from the last one."""
    rank = len(call.operands[0].label)
    return [rank - 1 - at for at in range(len(call["pad"]) // 2)]


LINEAR = Pointwise(linear=True)
PLAIN = Pointwise()
COPY = Pointwise(linear=True, copies=True)

AXIS_RULES: Mapping[Any, Rule] = {
    # tokens apart, operands broadcast: f(x, y)[i] = f(x[i], y[i])
    aten.mul.Tensor: LINEAR,
    aten.mul.Scalar: LINEAR,
    aten.div.Tensor: LINEAR,
    aten.div.Scalar: LINEAR,
    aten.neg.default: LINEAR,
    aten.dropout.default: COPY,
    aten.to.dtype: COPY,
    aten.to.dtype_layout: COPY,
    aten.to.device: COPY,
    aten._to_copy.default: COPY,
    aten.contiguous.default: COPY,
    aten.clone.default: COPY,
    aten.alias.default: COPY,
    aten.detach.default: COPY,
    aten.detach_.default: Detach(linear=True),
    aten.lift_fresh_copy.default: COPY,
    aten.where.self: PLAIN,
    aten.where.ScalarSelf: PLAIN,
    aten.where.ScalarOther: PLAIN,
    aten.where.Scalar: PLAIN,
    aten.masked_fill.Scalar: PLAIN,
    aten.masked_fill.Tensor: PLAIN,
    aten.__and__.Tensor: PLAIN,
    aten.__and__.Scalar: PLAIN,
    aten.__or__.Tensor: PLAIN,
    aten.__xor__.Tensor: PLAIN,
    aten.bitwise_and.Tensor: PLAIN,
    aten.bitwise_or.Tensor: PLAIN,
    aten.bitwise_not.default: PLAIN,
    aten.logical_and.default: PLAIN,
    aten.logical_or.default: PLAIN,
    aten.logical_not.default: PLAIN,
    aten.floor_divide.default: Divide(),
    aten.div.Scalar_mode: Divide(),
    aten.div.Tensor_mode: Divide(),
    aten.remainder.Scalar: Divide(rest=True),
    aten.gelu.default: PLAIN,
    aten.silu.default: PLAIN,
    aten.relu.default: PLAIN,
    aten.relu6.default: PLAIN,
    aten.mish.default: PLAIN,
    aten.hardswish.default: PLAIN,
    aten.elu.default: PLAIN,
    aten.selu.default: PLAIN,
    aten.softplus.default: PLAIN,
    aten.leaky_relu.default: PLAIN,
    aten.square.default: PLAIN,
    aten.clamp.default: PLAIN,
    aten.rsub.Scalar: PLAIN,
    aten.rsub.Tensor: PLAIN,
    aten.full_like.default: Fill(),
    aten.zeros_like.default: Fill(),
    aten.ones_like.default: Fill(),
    aten.empty_like.default: Fill(),
    aten.type_as.default: Like(),
    # factories: nothing of an operand's tokens enters
    aten.arange.default: Factory(ordered=True),
    aten.arange.start: Factory(ordered=True),
    aten.arange.start_step: Factory(ordered=True),
    aten.zeros.default: Factory(),
    aten.ones.default: Factory(),
    aten.full.default: Factory(),
    aten.empty.memory_format: Factory(),
    aten.scalar_tensor.default: Factory(),
    aten.new_zeros.default: Factory(),
    aten.new_ones.default: Factory(),
    aten.new_full.default: Factory(),
    aten.new_empty.default: Factory(),
    # row-major factors distributed anew
    aten.view.default: Reshape(),
    aten._unsafe_view.default: Reshape(),
    aten.reshape.default: Reshape(),
    aten.flatten.using_ints: Reshape(),
    aten.unflatten.int: Reshape(),
    aten.unsqueeze.default: Reshape(),
    aten.squeeze.default: Reshape(),
    aten.squeeze.dim: Reshape(),
    aten.squeeze.dims: Reshape(),
    # dimensions in another order, repeated or tiled
    aten.transpose.int: Permute(swap_order),
    aten.permute.default: Permute(listed_order),
    aten.movedim.int: Permute(moved_order),
    aten.t.default: Permute(reverse_order),
    aten.numpy_T.default: Permute(reverse_order),
    aten.expand.default: Expand(),
    aten.repeat.default: Repeat(),
    # real and imaginary parts
    aten.view_as_complex.default: Components(split=False),
    aten.view_as_real.default: Components(split=True),
    # sums over a dimension
    aten.linear.default: Project(),
    aten.matmul.default: Contract(),
    aten.mm.default: Contract(),
    aten.bmm.default: Contract(),
    aten.addmm.default: Contract(first=1),
    aten.conv1d.default: Convolve(),
    aten.conv2d.default: Convolve(),
    aten.conv2d.padding: Convolve(),
    aten.conv3d.default: Convolve(),
    aten.scaled_dot_product_attention.default: Attention(),
    aten.softmax.int: Softmax(),
    aten._softmax.default: Softmax(),
    aten.mean.dim: Reduce(law="mean"),
    aten.mean.default: Reduce(law="mean"),
    aten.sum.dim_IntList: Reduce(law="sum"),
    aten.sum.default: Reduce(law="sum"),
    aten.amax.default: Reduce(law="max"),
    aten.amin.default: Reduce(law="max"),
    aten.any.dim: Reduce(law="max"),
    aten.all.dim: Reduce(law="max"),
    aten.var.correction: Reduce(),
    aten.var.dim: Reduce(),
    aten.std.correction: Reduce(),
    aten.argmax.default: Reduce(),
    aten.max.dim: Reduce(),
    aten.logsumexp.default: Reduce(),
    aten.linalg_vector_norm.default: Reduce(),
    # statistics over some dimensions, tokens apart
    aten.layer_norm.default: Normalise(normalised),
    aten.native_layer_norm.default: Normalise(normalised),
    aten.rms_norm.default: Normalise(normalised),
    aten.group_norm.default: Normalise(all_but_batch),
    aten.batch_norm.default: Normalise(channels),
    aten.log_softmax.int: Normalise(one_dim),
    # entries at fixed places
    aten.select.int: Read(keep=False),
    aten.slice.Tensor: Read(keep=True),
    aten.narrow.default: Read(keep=True),
    aten.split.Tensor: Parts(keep=True),
    aten.split.sizes: Parts(keep=True),
    aten.split_with_sizes.default: Parts(keep=True),
    aten.chunk.default: Parts(keep=True),
    aten.unbind.int: Parts(keep=False),
    aten.cat.default: Concatenate(new=False),
    aten.stack.default: Concatenate(new=True),
    # entries that depend on their place
    aten.cumsum.default: Along(one_dim, fresh=False, totals=True),
    aten.cumprod.default: Along(one_dim, fresh=False),
    aten.roll.default: Along(listed_dims),
    aten.flip.default: Along(listed_dims),
    aten.diff.default: Along(one_dim),
    aten.topk.default: Along(one_dim),
    aten.tril.default: Along(last_two, fresh=False),
    aten.triu.default: Along(last_two, fresh=False),
    aten.pad.default: Along(padded_dims),
    aten.constant_pad_nd.default: Along(padded_dims),
    # entries by index
    aten.embedding.default: Lookup(),
    aten.index.Tensor: AdvancedIndex(),
    aten.gather.default: Gather(),
    aten.scatter.value: Gather(writes=True),
    aten.scatter.src: Gather(writes=True),
    # rows in an order of their own, and back
    aten.sort.default: Order(one_dim, places_at=1),
    aten.sort.stable: Order(one_dim, places_at=1),
    aten.argsort.default: Order(one_dim),
    aten.argsort.stable: Order(one_dim),
    aten.histc.default: Count(),
    aten._grouped_mm.default: Groups(),
    aten.index_put.default: PutBack(),
    aten.index_add.default: AddBack(),
    # over ranks
    **rules_of_collectives(),
}

FOREIGN_RULES: Mapping[str, Rule] = {
    "transformers::grouped_mm_fallback": Groups(),
}
"""Rules of operators that other libraries bring, by schema name: none of them is imported."""


def find_rule(target: Any) -> Rule | None:
    """The rule of an overload: its line, or the pointwise one if torch tags it so."""
    if target in AXIS_RULES:
        return AXIS_RULES[target]
    if not isinstance(target, torch._ops.OpOverload) or mutates(target):
        return None
    if target._schema.name in FOREIGN_RULES:
        return FOREIGN_RULES[target._schema.name]
    return PLAIN if torch.Tag.pointwise in target.tags else None


def mutates(target: torch._ops.OpOverload) -> bool:
    """Whether the schema writes to an argument (`detach_` writes no data)."""
    if target is aten.detach_.default:
        return False
    return any(a.alias_info is not None and a.alias_info.is_write for a in target._schema.arguments)
