"""The values of a replay: what every node gave, with the label and the sizes that it has now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Interpreter, Node
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from tokenpass.graph.axis import Label, Size, find_places
from tokenpass.graph.call import Operand
from tokenpass.graph.regions import SOFTMAX
from tokenpass.graph.view import View
from tokenpass.tracing import calls, fake_value

aten = torch.ops.aten


class Values(Interpreter):
    """An interpreter of the captured graph that knows how short every value is."""

    def __init__(self, view: View) -> None:
        super().__init__(view.module, garbage_collect_values=False)
        self.view = view
        self.now: dict[Node, tuple[Label, ...]] = {}
        self.memo: dict[Any, Any] = {}
        self.averaged: list[tuple[Operand, tuple[int, int], Any]] = []
        self.symbols: dict[sympy.Symbol, Size] = {}
        self.stream_nodes = stream_values(view)
        self.order = {node: at for at, node in enumerate(view.module.graph.nodes)}

    def value_of(self, node: Node) -> Any:
        """A node's value, computed ahead of its turn if need be."""
        if node not in self.env:
            for source in node.all_input_nodes:
                self.value_of(source)
            self.env[node] = self.run_node(node)
        return self.env[node]

    def label(self, node: Node, output: int = 0) -> Label:
        """The label that a value has now."""
        return self.now[node][output] if node in self.now else self.view.labels.of[node][output]

    def note_symbols(self, node: Node, value: Any) -> None:
        """Remember where the graph's size symbols can be read, so that sizes can be rebuilt."""
        fake = fake_value(node)
        pairs = [(fake, value)]
        if isinstance(fake, torch.Tensor):
            pairs = [(size, value.shape[at]) for at, size in enumerate(fake.shape)]
        for size, now in pairs:
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                self.symbols.setdefault(size.node.expr, now)

    def size(self, size: Size) -> Size:
        """A size of the captured graph as a size of the graph being made."""
        if isinstance(size, int):
            return size
        expr = size.node.expr
        if expr.is_Integer:
            return int(expr)
        # torch's own interpreter knows torch's own functions (FloorDiv, Mod, ...)
        return sympy_interp(PythonReferenceAnalysis, self.symbols, expr)

    def shape(self, label: Label) -> list[Size]:
        """The sizes that a value with this label has now."""
        sizes: list[Size] = []
        for dim in label:
            total: Size = 1
            for factor in dim:
                entries = self.size(factor.axis.size) if factor.cut is None else factor.cut.count
                total = total * entries
            sizes.append(total)
        return sizes

    def unwritten(self, operand: Operand) -> Node | None:
        """The node by which what is made of an operand is remembered; None if it is written to."""
        node = getattr(operand, "node", None)
        return None if node in self.view.written else node


@dataclass(frozen=True, eq=False)
class NodeOperand(Operand):
    """An operand that knows its node, so that what is made of it can be remembered."""

    node: Node | None = None


def stream_values(view: View) -> frozenset[Node]:
    """Values that descend from a stream's birth; others are side operands.

    So are masks and scores, even where they are computed from tokens: they are looked up at the
    positions that stand for merged tokens, since the mean of hidden and visible is neither.
    """
    found: set[Node] = set()
    for stream in view.streams:
        found |= {stream.birth} | view.downstream(stream.birth)
    return frozenset(found - scores(view))


def scores(view: View) -> set[Node]:
    """Values of pairs of tokens on their way into a softmax, fused attention's masks among them."""
    queue: list[Node] = []
    for node in calls(view.module.graph):
        if node.target in SOFTMAX:
            queue += node.all_input_nodes
        elif node.target is aten.scaled_dot_product_attention.default:
            queue += node.all_input_nodes[3:]
    found: set[Node] = set()
    while queue:
        node = queue.pop()
        if node not in found and node.target not in SOFTMAX and holds_pairs(view, node):
            found.add(node)
            queue += node.all_input_nodes
    return found


def holds_pairs(view: View, node: Node) -> bool:
    """Whether a value counts a stream's tokens in more than one dimension."""
    label = view.labels.of.get(node, ((),))[0]
    return any(len(find_places(label, stream.axis)) > 1 for stream in view.streams)
