"""Reads elementwise operators of a graph as one pointwise expression over the values before them.

    x -> gelu -> mul(., u) -> reshape      is      mul(gelu(a0), a1) of (x, u)

Whatever is not in the table is an input of the expression, so that nothing is ever misread.
Casts are looked through: a kernel computes in float32 and rounds once, as a fused one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import Node

from tokenpass.graph.call import bind
from tokenpass.graph.constants import constant_number
from tokenpass.ops.pointwise import Expression, Input, Y, call, number, parts
from tokenpass.tracing import fake_value, is_float

aten = torch.ops.aten

MOST_INPUTS = 8
MOST_PARTS = 64

Read = Callable[[Any], Expression]
"""An argument as an expression: a node's value, or a number."""


class NotPointwise(Exception):
    """A call whose options the table's function does not have."""


def plain(function: str) -> Callable[[dict[str, Any], Read], Expression]:
    """A function of the call's first arguments, as many as it takes."""

    def made(given: dict[str, Any], read: Read) -> Expression:
        return call(function, read(given["self"]))

    return made


def binary(function: str) -> Callable[[dict[str, Any], Read], Expression]:
    """A function of two values; `alpha` scales the second."""

    def made(given: dict[str, Any], read: Read) -> Expression:
        if given.get("rounding_mode") is not None:
            raise NotPointwise
        first, second, alpha = read(given["self"]), read(given["other"]), given.get("alpha", 1)
        second = second if alpha == 1 else call("mul", number(alpha), second)
        return call(function, first, second)

    return made


def power(given: dict[str, Any], read: Read) -> Expression:
    """Whole powers, roots and their inverses."""
    exponent, base = given["exponent"], read(given["self"])
    named = {2: "square", 0.5: "sqrt", -0.5: "rsqrt"}
    if not isinstance(exponent, int | float):
        raise NotPointwise
    if exponent in named:
        return call(named[exponent], base)
    if exponent != int(exponent) or abs(exponent) > 16:
        raise NotPointwise
    return call("pow", base, number(float(exponent)))


def gelu(given: dict[str, Any], read: Read) -> Expression:
    """Both of its forms."""
    name = {"none": "gelu", "tanh": "gelu_tanh"}[given.get("approximate", "none")]
    return call(name, read(given["self"]))


def clamp(given: dict[str, Any], read: Read) -> Expression:
    """Bounds may be left out."""
    value, low, high = read(given["self"]), given.get("min"), given.get("max")
    if "min_val" in given:
        low, high = given["min_val"], given["max_val"]
    if low is not None:
        value = call("maximum", value, read(low))
    return value if high is None else call("minimum", value, read(high))


def threshold(given: dict[str, Any], read: Read) -> Expression:
    """`x` where it is above the threshold."""
    value = read(given["self"])
    return call("where_gt", value, read(given["threshold"]), value, read(given["value"]))


def where(given: dict[str, Any], read: Read) -> Expression:
    """A choice by a comparison that is computed for it."""
    condition = given["condition"]
    if not isinstance(condition, Node) or condition.target not in GREATER:
        raise NotPointwise
    compared = bind(condition.target, condition.args, condition.kwargs)
    left, right = read(compared["self"]), read(compared["other"])
    if GREATER[condition.target]:
        left, right = right, left
    return call("where_gt", left, right, read(given["self"]), read(given["other"]))


GREATER: Mapping[Any, bool] = {
    aten.gt.Scalar: False,
    aten.gt.Tensor: False,
    aten.lt.Scalar: True,
    aten.lt.Tensor: True,
}
"""Comparisons, and whether their sides change places."""

FUNCTIONS: Mapping[Any, Callable[[dict[str, Any], Read], Expression]] = {
    **{getattr(aten, name).default: plain(name) for name in ("relu", "neg", "abs", "square")},
    **{getattr(aten, name).default: plain(name) for name in ("sqrt", "rsqrt", "exp", "log")},
    **{getattr(aten, name).default: plain(name) for name in ("tanh", "erf", "sigmoid", "silu")},
    **{getattr(aten, name).Tensor: binary(name) for name in ("add", "sub", "mul", "div")},
    aten.add.Scalar: binary("add"),
    aten.sub.Scalar: binary("sub"),
    aten.mul.Scalar: binary("mul"),
    aten.div.Scalar: binary("div"),
    aten.div.Tensor_mode: binary("div"),
    aten.maximum.default: binary("maximum"),
    aten.minimum.default: binary("minimum"),
    aten.pow.Tensor_Scalar: power,
    aten.gelu.default: gelu,
    aten.clamp.default: clamp,
    aten.clamp_min.default: clamp,
    aten.clamp_max.default: clamp,
    aten.hardtanh.default: clamp,
    aten.relu6.default: lambda given, read: call(
        "clamp", read(given["self"]), number(0.0), number(6.0)
    ),
    aten.threshold.default: threshold,
    aten.where.self: where,
    aten.where.ScalarOther: where,
    aten.where.ScalarSelf: where,
    aten.where.Scalar: where,
}
"""Operators with an expression; the next one is one entry."""

FILLS: Mapping[Any, Callable[[dict[str, Any]], Any]] = {
    aten.zeros.default: lambda given: 0.0,
    aten.ones.default: lambda given: 1.0,
    aten.zeros_like.default: lambda given: 0.0,
    aten.ones_like.default: lambda given: 1.0,
    aten.new_zeros.default: lambda given: 0.0,
    aten.new_ones.default: lambda given: 1.0,
    aten.full.default: lambda given: given["fill_value"],
    aten.full_like.default: lambda given: given["fill_value"],
    aten.new_full.default: lambda given: given["fill_value"],
    aten.scalar_tensor.default: lambda given: given["s"],
}
"""Values with one number everywhere."""

COPIES = frozenset(
    {
        aten.to,
        aten._to_copy,
        aten.alias,
        aten.clone,
        aten.contiguous,
        aten.detach,
        aten.type_as,
        aten.lift_fresh_copy,
    }
)
ROWS = frozenset(
    {aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.unsqueeze}
)
"""Operators that may arrange the leading dimensions anew."""


@dataclass(eq=False)
class PointwiseReader:
    """Reads values of `columns` entries a row, `rows` in all; `inputs` are those read so far.

    An input has all rows or one, and all columns or one. `computed`: a projection whose product,
    without its `bias`, is the expression's `y`. `within`: the only operators that are looked into.

    Columns may be laid out as blocks, `[..., blocks, size]`, and be scaled block by block:
    `blocked` holds the inputs that are read so, all blocks or one times all columns of one or one.
    """

    rows: Any
    columns: Any
    computed: Node | None = None
    bias: Node | None = None
    within: frozenset[Node] | None = None
    inputs: list[Node] = field(default_factory=list)
    passed: set[Node] = field(default_factory=set)
    blocked: dict[Node, tuple[int, int]] = field(default_factory=dict)
    blocks: tuple[int, int] | None = None

    def read(self, value: Any) -> Expression:
        """An argument's expression. Raises `NotPointwise` where it cannot be an input either."""
        if isinstance(value, bool) or not isinstance(value, Node):
            if isinstance(value, int | float) and not math.isnan(value):
                return number(float(value))
            raise NotPointwise
        if value is self.computed:
            self.passed.add(value)
            return Y if self.bias is None else call("add", Y, self.entered(self.bias))
        known = constant_number(value)
        if known is not None:
            return number(known)
        made = self.opened(value)
        return made if made is not None else self.entered(value)

    def opened(self, node: Node) -> Expression | None:
        """A call as what it computes from others; None where it is to be an input."""
        closed = self.within is not None and node not in self.within
        if closed or node.op != "call_function" or not is_float(node):
            return None
        if len(self.passed) > MOST_PARTS:
            return None
        packet = getattr(node.target, "overloadpacket", None)
        before = list(self.inputs), set(self.passed), dict(self.blocked)
        try:
            self.passed.add(node)
            if packet in COPIES or self.same_rows(node, packet):
                return self.read(node.args[0])
            if (blocks := self.other_blocks(node, packet)) is not False:
                return self.read_as(node.args[0], blocks)
            if node.target is aten.dropout.default and not node.args[2]:
                return self.read(node.args[0])
            if node.target in FILLS:
                filled = FILLS[node.target](bind(node.target, node.args, node.kwargs))
                return self.read(None if isinstance(filled, Node) else filled)
            made = FUNCTIONS.get(node.target)
            if made is not None and self.lines_up(node):
                return made(bind(node.target, node.args, node.kwargs), self.read)
        except NotPointwise:
            pass
        self.inputs, self.passed, self.blocked = before
        return None

    def read_as(self, value: Any, blocks: tuple[int, int] | None) -> Expression:
        """A value whose columns lie in these blocks, or are one dimension."""
        kept, self.blocks = self.blocks, blocks
        try:
            return self.read(value)
        finally:
            self.blocks = kept

    def other_blocks(self, node: Node, packet: Any) -> tuple[int, int] | Literal[False] | None:
        """The blocks before a call that merges them, None before one that cuts; False if neither.

        Both keep the order of the rows and columns.
        """
        source = node.args[0] if packet in ROWS and node.args else None
        if self.computed is not None or not isinstance(source, Node):
            return False
        old, new = tuple(fake_value(source).shape), tuple(fake_value(node).shape)
        if self.blocks is None:
            before = old[-2:]
            if len(old) < 2 or not all(isinstance(size, int) for size in (*before, new[-1])):
                return False
            whole = before[0] * before[1] == self.columns and same(new[-1], self.columns)
            return (before[0], before[1]) if whole else False
        cut = old and same(old[-1], self.columns) and new[-2:] == self.blocks
        return None if cut else False

    def same_rows(self, node: Node, packet: Any) -> bool:
        """Whether a call only arranges rows: the last dimension stays."""
        source = node.args[0]
        if packet not in ROWS or not isinstance(source, Node):
            return False
        old, new = fake_value(source).shape, fake_value(node).shape
        last = 1 if self.blocks is None else 2
        if len(old) < last or len(new) < last:
            return False
        return all(map(same, old[-last:], new[-last:]))

    def lines_up(self, node: Node) -> bool:
        """Whether every operand has all of the call's rows or a single one."""
        shape = fake_value(node).shape
        for source in node.all_input_nodes:
            value = fake_value(source)
            if not isinstance(value, torch.Tensor):
                return False
            lead = value.shape[:-1]
            single = all(same(size, 1) for size in lead)
            whole = len(lead) == len(shape) - 1 and all(map(same, lead, shape[:-1]))
            if not (single or whole):
                return False
        return True

    def entered(self, node: Node) -> Expression:
        """A value as an input of the expression."""
        value = fake_value(node)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise NotPointwise
        if self.blocks is not None:
            return self.entered_blocks(node, tuple(value.shape), self.blocks)
        rows = math.prod(value.shape[:-1]) if value.dim() else 1
        columns = value.shape[-1] if value.dim() else 1
        if not (same(rows, 1) or same(rows, self.rows)):
            raise NotPointwise
        if not (same(columns, 1) or same(columns, self.columns)):
            raise NotPointwise
        return self.numbered(node, None)

    def entered_blocks(
        self, node: Node, shape: tuple[Any, ...], blocks: tuple[int, int]
    ) -> Expression:
        """The same where its columns, or a scale for each block of them, lie in blocks."""
        padded = (1, 1, *shape)
        rows = math.prod(padded[:-2])
        fits = (same(size, 1) or same(size, b) for size, b in zip(padded[-2:], blocks, strict=True))
        if not (same(rows, 1) or same(rows, self.rows)) or not all(fits):
            raise NotPointwise
        return self.numbered(node, blocks)

    def numbered(self, node: Node, blocks: tuple[int, int] | None) -> Expression:
        """The input that a node is, in one layout alone."""
        if node not in self.inputs:
            if len(self.inputs) == MOST_INPUTS:
                raise NotPointwise
            self.inputs.append(node)
            if blocks is not None:
                self.blocked[node] = blocks
        if self.blocked.get(node) != blocks:
            raise NotPointwise
        return Input(self.inputs.index(node))


def same(first: Any, second: Any) -> bool:
    """Whether two sizes are equal as far as is known without a guard."""
    if isinstance(first, int) and isinstance(second, int):
        return first == second
    left, right = (getattr(getattr(s, "node", None), "expr", s) for s in (first, second))
    return left == right


def inputs_of(expression: Expression) -> set[int]:
    """Indices of the inputs that an expression reads."""
    return {part.index for part in parts(expression) if isinstance(part, Input)}
