"""Forward over the graph: the label of every value, from the rules."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map

from tokenpass.graph.aliases import written_nodes
from tokenpass.graph.axis import (
    Axis,
    AxisTable,
    Label,
    Size,
    Unalignable,
    factors,
    find_axis,
    is_constant,
)
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.call import Call, Operand, bind, is_one
from tokenpass.graph.meaning import Meaning
from tokenpass.graph.row_sets import RowSet, find_row_sets
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
    """Labels of all values of a graph: `labels[node]` is one label, or a tuple for several.

    `unknown`: axes of values that operators without a rule give: what they count is not known.
    """

    def __init__(self, graph: Graph) -> None:
        self.table = AxisTable()
        self.of: dict[Node, tuple[Label, ...]] = {}
        self.unknown: set[Axis] = set()
        self.nonnegative: set[Node] = set()
        self.written = written_nodes(graph)
        self.meanings: dict[Node, tuple[Meaning | None, ...]] = {}
        self._samples: dict[tuple[Node, Axis, Axis], bool] = {}
        for node in graph.nodes:
            if fake_tensors(node):
                self.of[node] = self.infer(node)
                if node in self.written:  # what is written later is not what was made
                    self.of[node] = self.without_constants(node)
                elif self.is_nonnegative(node):
                    self.nonnegative.add(node)
                self.note_meaning(node)
        self.row_sets: list[RowSet] = find_row_sets(graph, self)

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
            unknown = tuple(call.fresh_label(at) for at in range(len(call.out_shapes)))
            if node.op == "call_function":
                self.unknown.update(f.axis for label in unknown for f in factors(label))
            return unknown
        if self.always_true(node):
            return (constant_label(call),)
        try:
            return rule.infer(call)
        except Unalignable:
            return tuple(call.fresh_label(at) for at in range(len(call.out_shapes)))

    def note_meaning(self, node: Node) -> None:
        """What a value's integers say about rows, where they do."""
        if node.op != "call_function" or node in self.written:
            return
        if node.target is operator.getitem:
            source, index = node.args
            found = self.meanings.get(source, ())[index:][:1] if isinstance(index, int) else ()  # type: ignore[arg-type]
        else:
            rule = find_rule(node.target)
            found = rule.meanings(self.call(node)) if rule is not None else ()
        if any(found):
            self.meanings[node] = found

    def meaning(self, node: Node) -> Meaning | None:
        """What the integers of a node's only value say about rows."""
        found = self.meanings.get(node, ())
        return found[0] if len(found) == 1 else None

    def without_constants(self, node: Node) -> tuple[Label, ...]:
        """The node's labels, with new axes for dimensions whose entries were all equal."""
        call = self.call(node)
        return tuple(
            tuple(
                new if is_constant(dim) else dim
                for dim, new in zip(label, call.fresh_label(output), strict=True)
            )
            for output, label in enumerate(self.of[node])
        )

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

    def keeps_samples(self, node: Node, batch: Axis | None, axis: Axis) -> bool:
        """Whether a call treats samples apart, wherever its outputs hold tokens of `axis`.

        Asked of the rule, by a cut of the batch: it must come through, and block nothing.
        """
        if batch is None or node in self.table.row_wise:
            return True
        key = (node, batch.root, axis.root)
        if key not in self._samples:
            self._samples[key] = self.probe_samples(node, batch, axis)
        return self._samples[key]

    def probe_samples(self, node: Node, batch: Axis, axis: Axis) -> bool:
        """`keeps_samples`, not remembered."""
        rule, call, probe = find_rule(node.target), self.call(node), Probe(batch.size)
        if rule is None:
            return False
        labels = [cut_axis(operand.label, batch, probe) for operand in call.operands]
        pairs = zip(call.operands, labels, strict=True)
        call = call.with_operands([replace(o, label=label) for o, label in pairs])
        for index, (dim, place) in rule.blocked(call):
            if labels[index][dim][place].cut is probe:
                return False
        try:
            outs = rule.infer(call)
        except Unalignable:
            return False
        return all(samples_apart(label, axis, probe) for label in outs)

    def operand(self, value: Any) -> Any:
        """A node argument as an operand (tensors) or as its traced value (sizes)."""
        if not isinstance(value, Node):
            return value
        fake = fake_value(value)
        if not isinstance(fake, torch.Tensor):
            return fake
        known = value in self.nonnegative
        meaning = self.meaning(value)
        return Operand(
            self.of[value][0], tuple(fake.shape), fake, nonnegative=known, meaning=meaning
        )

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


@dataclass(frozen=True, eq=False)
class Probe:
    """A cut that keeps every entry: it shows where an axis goes."""

    count: Size
    parent: None = None
    sizes: str = "known"


def cut_axis(label: Label, axis: Axis, cut: Any) -> Label:
    """The label with every occurrence of an axis cut."""
    return tuple(
        tuple(replace(f, cut=cut) if f.axis.root is axis.root else f for f in dim) for dim in label
    )


def samples_apart(label: Label, axis: Axis, probe: Probe) -> bool:
    """Whether a probed output has no tokens, or samples that were not summed without them.

    Samples that meet samples, `out[b, b', ..]`, leave open whose tokens they are.
    """
    tokens = find_axis(label, axis)
    if tokens is None:
        return True
    found = [(at, f) for at, dim in enumerate(label) for f in dim if f.cut is probe]
    return len(found) == 1 and all(at == tokens[0] or not factor.extensive for at, factor in found)


def constant_label(call: Call) -> Label:
    """A label in which all entries are equal along every dimension."""
    return tuple(
        () if is_one(size) else (call.fresh(("constant", at), size, constant=True),)
        for at, size in enumerate(call.out_shapes[0])
    )
