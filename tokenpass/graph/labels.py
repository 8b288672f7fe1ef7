"""Forward over the graph: the label of every value, from the rules."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map

from tokenpass.graph.axis import AxisTable, Label, Unalignable
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.call import Call, Operand, bind, is_one
from tokenpass.tracing import fake_tensors, fake_value

aten = torch.ops.aten
KEEPS_SIGN = frozenset(
    {
        aten.unsqueeze.default,
        aten.view.default,
        aten.reshape.default,
        aten.expand.default,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.slice.Tensor,
        aten.alias.default,
        aten.detach.default,
        aten.contiguous.default,
    }
)


class Labels:
    """Labels of all values of a graph: `labels[node]` is one label, or a tuple for several."""

    def __init__(self, graph: Graph) -> None:
        self.table = AxisTable()
        self.of: dict[Node, tuple[Label, ...]] = {}
        self.nonnegative: set[Node] = set()
        for node in graph.nodes:
            if fake_tensors(node):
                self.of[node] = self.infer(node)
                if self.is_nonnegative(node):
                    self.nonnegative.add(node)

    def __getitem__(self, node: Node) -> Label:
        return self.of[node][0]

    def infer(self, node: Node) -> tuple[Label, ...]:
        """Labels of one node; new axes where no rule says more."""
        if node.target is operator.getitem:
            source, index = node.args
            if source in self.of and isinstance(index, int):
                return (self.of[source][index],)
        call = self.call(node)
        rule = find_rule(node.target) if node.op == "call_function" else None
        if rule is None:
            return tuple(call.fresh_label(at) for at in range(len(call.out_shapes)))
        if self.always_true(node):
            return (constant_label(call),)
        try:
            return rule.infer(call)
        except Unalignable:
            return tuple(call.fresh_label(at) for at in range(len(call.out_shapes)))

    def call(self, node: Node, values: dict[str, Any] | None = None) -> Call:
        """The node as a call; `values` (bound arguments) stand for the graph's own."""
        bound: dict[str, Any] = {}
        if values is not None:
            bound = values
        elif isinstance(node.target, torch._ops.OpOverload):
            raw = bind(node.target, node.args, node.kwargs)
            bound = {name: tree_map(self.operand, value) for name, value in raw.items()}
        shapes = tuple(tuple(tensor.shape) for tensor in fake_tensors(node))
        return Call(node, node.target, bound, shapes, self.table)

    def operand(self, value: Any) -> Any:
        """A node argument as an operand (tensors) or as its traced value (sizes)."""
        if not isinstance(value, Node):
            return value
        fake = fake_value(value)
        if not isinstance(fake, torch.Tensor):
            return fake
        known = value in self.nonnegative
        return Operand(self.of[value][0], tuple(fake.shape), fake, nonnegative=known)

    def is_nonnegative(self, node: Node) -> bool:
        """Whether no entry of an integer value can be below zero."""
        target, args = node.target, node.args
        if target in (aten.arange.default, aten.zeros.default, aten.ones.default):
            return True
        if target is aten.arange.start:
            return isinstance(args[0], int) and args[0] >= 0
        if target is aten.add.Tensor:
            return all(self.counts_up(arg) for arg in args[:2])
        return target in KEEPS_SIGN and args[0] in self.nonnegative

    def counts_up(self, value: Any) -> bool:
        """Whether an addend cannot be negative."""
        if isinstance(value, Node):
            return value in self.nonnegative
        return isinstance(value, int) and value >= 0

    def always_true(self, node: Node) -> bool:
        """Comparisons that hold whatever the position: `arange(n) >= 0`."""
        if node.target is not aten.ge.Scalar:
            return False
        source, bound = node.args
        return source in self.nonnegative and isinstance(bound, int) and bound <= 0


def constant_label(call: Call) -> Label:
    """A label in which all entries are equal along every dimension."""
    return tuple(
        () if is_one(size) else (call.fresh(("constant", at), size, constant=True),)
        for at, size in enumerate(call.out_shapes[0])
    )
