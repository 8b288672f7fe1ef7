"""Attention regions: fused calls, and hand-written matmul, softmax, matmul."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from tokenpass.errors import InternalError
from tokenpass.graph.axis import Axis
from tokenpass.graph.causality import Examples, ancestors, may_be_causal
from tokenpass.graph.labels import Labels
from tokenpass.ranks import group_of, has_collectives
from tokenpass.tracing import calls, fake_value

aten = torch.ops.aten
FUSED = aten.scaled_dot_product_attention.default
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
PRODUCT = frozenset({aten.matmul.default, aten.bmm.default})
FILL = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
WHERE = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
BETWEEN = frozenset(
    {
        aten.dropout.default,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.type_as.default,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.add.Tensor,
        *FILL,
        *WHERE,
        aten.sub.Tensor,
        aten.expand.default,
        aten.reshape.default,
        aten.view.default,
        aten.unsqueeze.default,
        aten.contiguous.default,
        aten.tanh.default,
    }
)

MOST_BETWEEN = 12
"""Operators between a product and the softmax that are looked through."""

Mask = tuple[Node, bool]
"""A mask's node, and whether True in it means hidden (added masks have large negative entries)."""


@dataclass(frozen=True, eq=False)
class AttentionRegion:
    """One attention: its operands' nodes and what their token dimensions count.

    `key` is `[.., keys, width]`, transposed (`[.., width, keys]`) if `key_transposed`;
    `probabilities` is the softmax's node where the attention is hand-written. `masks`: what is
    added to or put into the scores. `causal`: later tokens are hidden from earlier ones, or may be.
    `groups`: the process groups that bring its heads together, if this rank has some of them alone.
    """

    layer: int
    node: Node
    query: Node
    key: Node
    value: Node
    masks: tuple[Mask, ...]
    query_axis: Axis
    key_axis: Axis
    causal: bool
    key_transposed: bool = False
    probabilities: Node | None = None
    scale: float | None = None
    groups: tuple[Any, ...] = ()

    @property
    def attention(self) -> Node:
        """The fused call, or the softmax of a hand-written one."""
        return self.probabilities or self.node

    @property
    def is_self(self) -> bool:
        """Whether queries and keys count the same tokens."""
        return self.query_axis is self.key_axis


def attention_regions(graph: Graph, labels: Labels, examples: Examples) -> list[AttentionRegion]:
    """All attention regions with token axes, in graph order; `layer` counts from 0."""
    found: list[AttentionRegion] = []
    for node in calls(graph):
        region = None
        if node.target is FUSED:
            region = fused_region(node, labels, examples, len(found))
        elif node.target in SOFTMAX:
            region = written_region(node, labels, examples, len(found))
        if region is not None:
            found.append(region)
    if not has_collectives(graph):
        return found
    ends = [*(region.query for region in found[1:]), None]
    return [replace(r, groups=groups_behind(r, end)) for r, end in zip(found, ends, strict=True)]


def groups_behind(region: AttentionRegion, end: Node | None) -> tuple[Any, ...]:
    """Groups of the collectives that an attention's result goes through, up to the next one."""
    before = None if end is None else {end, *ancestors(end)}
    seen, groups = {region.node}, {}
    for node in calls(region.node.graph):
        inside = before is None or node in before
        if inside and not seen.isdisjoint(node.all_input_nodes):
            seen.add(node)
            group = group_of(node)
            if group is not None:
                groups[group] = None
    return tuple(groups)


def single(labels: Labels, node: Node, dim: int) -> Axis | None:
    """The axis of a dimension with exactly one factor."""
    factors = labels[node][dim]
    return factors[0].axis.root if len(factors) == 1 else None


def fused_region(
    node: Node, labels: Labels, examples: Examples, layer: int
) -> AttentionRegion | None:
    """The region of a fused attention call; None where it attends over one token."""
    call = labels.call(node)
    query, key, value = (node_argument(node, at) for at in range(3))
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    rows, columns = single(labels, query, -2), single(labels, key, -2)
    if rows is None or columns is None:
        return None
    mask = mask if isinstance(mask, Node) else None
    masks = () if mask is None else ((mask, False),)
    causal = bool(call.get("is_causal", False)) or hides_future(masks, labels, examples)
    scale = call.get("scale")
    return AttentionRegion(
        layer, node, query, key, value, masks, rows, columns, causal, scale=scale
    )


def hides_future(masks: tuple[Mask, ...], labels: Labels, examples: Examples) -> bool:
    """Whether some mask may keep later tokens from earlier ones."""
    return any(may_be_causal(mask, hides, labels, examples) for mask, hides in masks)


def node_argument(node: Node, at: int) -> Node:
    """A positional argument that the schema says is a tensor."""
    value = node.args[at]
    if not isinstance(value, Node):
        raise InternalError(f"{node.name}: argument {at} is no tensor")
    return value


def written_region(
    node: Node, labels: Labels, examples: Examples, layer: int
) -> AttentionRegion | None:
    """The region around a softmax over keys: the product before it and the one after it."""
    label = labels[node]
    call = labels.call(node)
    if len(label) < 3 or call.dim() != len(label) - 1:
        return None
    columns, rows = single(labels, node, -1), single(labels, node, -2)
    before = product_before(node)
    after = product_after(node)
    if rows is None or columns is None or before is None or after is None:
        return None
    query, key = node_argument(before, 0), node_argument(before, 1)
    masks = tuple(masks_between(before, node))
    return AttentionRegion(
        layer,
        after,
        query,
        key,
        node_argument(after, 1),
        masks,
        rows,
        columns,
        hides_future(masks, labels, examples),
        key_transposed=True,
        probabilities=node,
    )


def product_before(node: Node) -> Node | None:
    """The matrix product whose result reaches a softmax through elementwise operators."""
    for _ in range(MOST_BETWEEN):
        candidates = [a for a in node.all_input_nodes if reaches_product(a)]
        if not candidates:
            return None
        node = candidates[0]
        if node.target in PRODUCT:
            return node
    return None


def reaches_product(node: Node, steps: int = MOST_BETWEEN) -> bool:
    """Whether a node is a product, or an elementwise operator on one (a mask is on none)."""
    if node.target in PRODUCT:
        return True
    if steps == 0 or node.target not in BETWEEN:
        return False
    return any(reaches_product(source, steps - 1) for source in node.all_input_nodes)


def product_after(node: Node) -> Node | None:
    """The matrix product that takes the probabilities as its left side."""
    for _ in range(MOST_BETWEEN):
        products = [u for u in node.users if u.target in PRODUCT and u.args[0] is node]
        if products:
            return products[0]
        onward = [u for u in node.users if u.target in BETWEEN]
        if len(onward) != 1:
            return None
        node = onward[0]
    return None


def masks_between(before: Node, after: Node) -> list[Mask]:
    """Tensors that are added to the scores, or say where they are filled, before the softmax."""
    found: list[Mask] = []
    node = after
    while node is not before and node.args:
        tensors = [n for n in node.all_input_nodes if isinstance(fake_value(n), torch.Tensor)]
        onward = [n for n in tensors if n is before or reaches_product(n)]
        if node.target is aten.add.Tensor:
            found += [(n, False) for n in tensors if n not in onward]
        elif node.target in FILL and isinstance(node.args[1], Node):
            found.append((node.args[1], True))
        elif node.target in WHERE and isinstance(node.args[0], Node):
            found.append((node.args[0], node.args[1] not in onward))
        if not onward:
            break
        node = onward[0]
    return found
