"""few_rows: a linear layer of few rows by a kernel that reads its weight once, as it is stored.

    before   z = act(x[rows, k] @ W^T + b) + r
    after    z = few_rows_linear([x], W, [b, r])

Exact: the same sums, rounded once. With few rows a product takes as long as its weight takes to be
read, and libraries made for many rows read it more slowly than memory gives it, in bfloat16 above
all. Where the device's profile has measured no such gain, nothing is replaced.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch.fx import Node

from tokenpass.cost.group_time import WeightRead
from tokenpass.cost.sizes import dtype_name
from tokenpass.edits import Rejection
from tokenpass.graph.pointwise_reader import NotPointwise
from tokenpass.graph.projections import projections
from tokenpass.passes.base import RegionContext, RegionPass
from tokenpass.passes.projection_tail import (
    DTYPES,
    MOST_ROWS,
    Tail,
    following,
    matrix,
    shaped,
    tail_inputs,
)
from tokenpass.rewrite.replacing import Calls, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.tracing import fake_value, module_path, source_line


class FewRows(RegionPass):
    """Every linear layer of few rows, with the pointwise operators behind it."""

    name: ClassVar[str] = "few_rows"

    def replacements(
        self, context: RegionContext
    ) -> tuple[tuple[Replacement, ...], tuple[Rejection, ...]]:
        found: list[Replacement] = []
        unrated: dict[str, list[Node]] = {}
        for node, name in projections(context.module.graph, context.static).items():
            if not readable(node, context):
                continue
            dtype = dtype_name(fake_value(node).dtype)
            if dtype in context.rated:
                one = replacement(node, name.replace(":projection", ":linear"))
                found += [] if one is None else [one]
            elif is_few(rows_of(node)):
                unrated.setdefault(dtype, []).append(node)
        return tuple(found), tuple(no_rate(dtype, nodes) for dtype, nodes in unrated.items())


def no_rate(dtype: str, nodes: list[Node]) -> Rejection:
    """Why all linear layers of a dtype stay as they are."""
    first = module_path(nodes[0]) or nodes[0].name
    where = first if len(nodes) == 1 else f"{first} and {len(nodes) - 1} more"
    because = f"the device's profile has no rate of our kernel of few rows for {dtype}"
    hint = "run `tokenpass device` once to measure"
    return Rejection("no_kernel_rate", where, because, hint, source_line(nodes[0]))


def readable(node: Node, context: RegionContext) -> bool:
    """Whether a kernel may read what a projection reads: three dtypes, never written in place."""
    value = fake_value(node)
    if value.dtype not in DTYPES or sum(not isinstance(size, int) for size in value.shape) > 1:
        return False
    read = [node, *node.all_input_nodes]
    same = all(fake_value(one).dtype == value.dtype for one in read)
    return same and not any(one in context.written for one in read)


def rows_of(node: Node) -> Any:
    """Rows of a projection."""
    return math.prod(fake_value(node).shape[:-1])


def is_few(rows: Any) -> bool:
    """Whether the kernel is written for so many rows; a dynamic number is held there by a guard."""
    return bool(rows >= 1) and bool(rows <= MOST_ROWS)


def replacement(node: Node, site: str) -> Replacement | None:
    """A projection, and the pointwise operators that follow it, by our operator."""
    rows = rows_of(node)
    if not is_few(rows):
        return None
    try:
        tail = following(node, rows)
    except NotPointwise:
        return None
    weight = fake_value(node.args[1])  # type: ignore[arg-type]
    count = int(hinted(rows))
    outputs, width = weight.shape
    size = weight.numel() * weight.element_size()
    return Replacement(
        tail.end,
        node,
        site,
        "few_rows_linear",
        f"{outputs}*{width}",
        lambda calls: shaped(calls, linear(calls, node, tail), tail.end),
        ("few_rows_linear",),
        read=WeightRead(count, outputs, width, dtype_name(weight.dtype), size),
    )


def linear(calls: Calls, node: Node, tail: Tail) -> Node:
    """`[rows, outputs]`."""
    x, weight = node.args[:2]
    inputs = [matrix(calls, calls[x])]  # type: ignore[index]
    extras, text = tail_inputs(calls, tail), str(tail.expression)
    call = torch.ops.tokenpass.few_rows_linear.default
    return calls.call(call, inputs, "a0", calls[weight], extras, text)  # type: ignore[index]
