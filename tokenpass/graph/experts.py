"""Experts whose weights are stacked, all computed, weighted by a router and summed.

    y[t] = sum over e of r[t, e] D[e] h(U[e] x[t])            most r are 0

Read backwards from the sum. Every step between is a rule over a single operator: a product with a
stack of weights, an elementwise expression, an arrangement that keeps the order of the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from tokenpass.graph.frequent import frequent
from tokenpass.graph.pointwise_reader import NotPointwise, PointwiseReader, inputs_of, same
from tokenpass.graph.projections import columns_of, factors, product
from tokenpass.ops.pointwise import Expression, Input, Number
from tokenpass.tracing import calls, fake_value, is_float

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class ExpertFactor:
    """A function of x times some rows of every expert's weight: `size` rows from `start`."""

    expression: Expression
    weight: Node
    start: int


@dataclass(frozen=True, eq=False)
class ExpertRegion:
    """A weighted sum over experts: `end` is the sum, `last` the product with `down`.

    `tokens` [rows, width] is what the experts read, `factors` make the neurons, `size` of each
    expert. `router`: the factors of their weights, [experts, rows, 1] or that order otherwise
    shaped. `density`: the share of experts of one row that are expected to have a weight.
    """

    end: Node
    last: Node
    down: Node
    tokens: Node
    factors: tuple[ExpertFactor, ...]
    router: tuple[Node, ...]
    rows: Any
    density: float
    nodes: frozenset[Node]

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return fake_value(self.down).shape[0]

    @property
    def size(self) -> int:
        """Neurons of one expert."""
        return fake_value(self.down).shape[2]


@dataclass(frozen=True, eq=False)
class ExpertProduct:
    """`operand` [experts, rows, in], each expert's rows times its own of `weight` [.., out, in]."""

    node: Node
    weight: Node
    operand: Node


def expert_regions(graph: Graph, static: frozenset[Node]) -> list[ExpertRegion]:
    """All such sums, in graph order; `static`: the placeholders that are parameters."""
    found = (expert_region(node, static) for node in calls(graph))
    return [region for region in found if region is not None]


def expert_region(node: Node, static: frozenset[Node]) -> ExpertRegion | None:
    """The region that ends in a sum; None where any step of it is not as described."""
    if node.target is not aten.sum.dim_IntList or not is_float(node) or len(node.args) != 2:
        return None
    terms, dims = node.args
    if not isinstance(terms, Node):
        return None
    shape = tuple(fake_value(terms).shape)
    if len(shape) != 3 or dims not in ([0], [-3]) or not isinstance(shape[0], int):
        return None
    weighted = weighted_product(unshaped(terms), shape, static)
    if weighted is None or fake_value(weighted[0].weight).shape[0] != shape[0]:
        return None
    last, router, passed = weighted
    made = neurons(last, shape[1], static)
    density = density_of(router)
    if made is None or density is None:
        return None
    tokens, parts, inside = made
    nodes = frozenset(passed | inside | {last.node})
    return ExpertRegion(
        node, last.node, last.weight, tokens, parts, router, shape[1], density, nodes
    )


def weighted_product(
    node: Node, shape: tuple[Any, ...], static: frozenset[Node]
) -> tuple[ExpertProduct, tuple[Node, ...], set[Node]] | None:
    """(product, weights, operators passed) of experts' results, each times its weight."""
    reader = PointwiseReader(shape[0] * shape[1], shape[2])
    try:
        terms = factors(reader.read(node))
    except NotPointwise:
        return None
    if not all(isinstance(term, Input) for term in terms):
        return None
    nodes = [reader.inputs[term.index] for term in terms if isinstance(term, Input)]
    products = [expert_product(unshaped(one), static) for one in nodes]
    made = [one for one in products if one is not None]
    weights = tuple(one for one, found in zip(nodes, products, strict=True) if found is None)
    pairs = shape[0] * shape[1]
    each = all(same(math.prod(fake_value(one).shape), pairs) for one in weights)
    if len(made) != 1 or not weights or not each:
        return None
    return made[0], weights, reader.passed


def neurons(
    last: ExpertProduct, rows: Any, static: frozenset[Node]
) -> tuple[Node, tuple[ExpertFactor, ...], set[Node]] | None:
    """(tokens, factors, operators passed) of what the last product multiplies."""
    experts, _, size = fake_value(last.weight).shape
    reader = PointwiseReader(experts * rows, size)
    try:
        terms = factors(reader.read(unshaped(last.operand)))
    except NotPointwise:
        return None
    by_input: dict[int, list[Expression]] = {}
    for term in terms:
        read = inputs_of(term)
        if len(read) != 1 or isinstance(term, Number):
            return None
        by_input.setdefault(next(iter(read)), []).append(term)
    made: list[ExpertFactor] = []
    tokens: set[Node] = set()
    inside = set(reader.passed)
    for at, mine in by_input.items():
        part = columns_of(reader.inputs[at])
        first = None if part is None else expert_product(unshaped(part.projection), static)
        if part is None or first is None or part.length != size:
            return None
        if fake_value(first.weight).shape[0] != experts:
            return None
        source = shared(first, rows)
        if source is None:
            return None
        tokens.add(source)
        made.append(ExpertFactor(product(mine), first.weight, part.start))
        inside |= {first.node, part.projection, reader.inputs[at]}
    return (tokens.pop(), tuple(made), inside) if len(tokens) == 1 else None


def expert_product(node: Node, static: frozenset[Node]) -> ExpertProduct | None:
    """A call as a product of every expert's rows with a transposed stack of weights."""
    if node.target not in (aten.bmm.default, aten.matmul.default) or not is_float(node):
        return None
    operand, stack = node.args[:2]
    if not isinstance(operand, Node) or not isinstance(stack, Node):
        return None
    if stack.target is not aten.transpose.int or fake_value(operand).dim() != 3:
        return None
    weight = stack.args[0]
    dims = {dim % fake_value(stack).dim() for dim in stack.args[1:]}
    if weight not in static or fake_value(stack).dim() != 3 or dims != {1, 2}:
        return None
    return ExpertProduct(node, weight, operand)


def shared(first: ExpertProduct, rows: Any) -> Node | None:
    """The tokens, which all experts read; None where each has its own."""
    experts, _, width = fake_value(first.weight).shape
    wanted, node = (1, rows, width), unshaped(first.operand)
    if all(map(same, fake_value(first.operand).shape, wanted)):
        return node
    source, shape = (node.args or (None,))[0], fake_value(node).shape
    if node.target is not aten.expand.default or not isinstance(source, Node):
        return None
    before = (1, *fake_value(source).shape)[-3:]
    fits = len(before) == 3 and all(map(same, before, wanted))
    whole = len(shape) == 3 and all(map(same, shape, (experts, rows, width)))
    return unshaped(source) if fits and whole else None


def density_of(router: tuple[Node, ...]) -> float | None:
    """Share of experts that are expected to have a weight; None where nothing is known."""
    facts = [fact.density for node in router for fact in frequent(node) if fact.value == 0]
    return min(facts, default=None)


ORDERED = frozenset(
    {
        *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unsqueeze, aten.squeeze),
        *(aten.alias, aten.contiguous, aten.clone, aten.detach),
    }
)
"""Operators that keep all numbers, in their order."""


def unshaped(node: Any) -> Node:
    """A value before all that only gives it another shape."""
    while isinstance(node, Node) and getattr(node.target, "overloadpacket", None) in ORDERED:
        node = node.args[0]
    return node
