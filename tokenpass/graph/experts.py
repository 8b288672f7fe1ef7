"""Experts whose weights are stacked, weighted by a router and summed, in two spellings.

    y[t] = sum over j of w[t, j] D[e] h(U[e] x[t]),  e = ids[t, j]       copies of the chosen ones
    y[t] = sum over e of r[t, e] D[e] h(U[e] x[t])                       all of them, most r being 0

Read backwards from the sum. Every step between is a rule over a single operator: a product with a
stack of weights, an elementwise expression, an arrangement that keeps the order of the numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
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
    """A function of some rows of every expert's weight, `weight[:, start:start + size]`, times x."""

    expression: Expression
    weight: Node
    start: int


@dataclass(frozen=True, eq=False)
class ExpertRegion:
    """A weighted sum over experts: `end` is the sum, `last` the product with `down`.

    `tokens` [rows, width] is what the experts read, `factors` make the neurons, `size` of each
    expert. `ids`: which experts were chosen, a row's one beside the other, `chosen` of them; None
    where all are computed. `router`: the factors of their weights, in the order of the ids, or
    [experts, rows, 1]. `density`: the share of experts of one row that are expected to count.
    """

    end: Node
    last: Node
    down: Node
    tokens: Node
    factors: tuple[ExpertFactor, ...]
    router: tuple[Node, ...]
    ids: Node | None
    chosen: int
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
    """A product of every row with its own matrix of a stack `weight` [experts, out, in].

    `operand` holds the rows. `ids`: the matrix of each; None where expert e has rows of its own,
    [experts, rows, in].
    """

    node: Node
    weight: Node
    ids: Node | None
    operand: Node


def expert_regions(graph: Graph, static: frozenset[Node]) -> list[ExpertRegion]:
    """All such sums, in graph order; `static`: the placeholders that are parameters."""
    found = (expert_region(node, static) for node in calls(graph))
    return [region for region in found if region is not None]


def looked_up_products(graph: Graph, static: frozenset[Node]) -> Iterator[ExpertProduct]:
    """All products with copies of chosen experts' weights."""
    for node in calls(graph):
        made = expert_product(node, static)
        if made is not None and made.ids is not None:
            yield made


def expert_region(node: Node, static: frozenset[Node]) -> ExpertRegion | None:
    """The region that ends in a sum; None where any step of it is not as described."""
    if node.target is not aten.sum.dim_IntList or not is_float(node) or len(node.args) > 2:
        return None
    terms, dims = node.args[0], node.args[1]
    shape = tuple(fake_value(terms).shape)
    if len(shape) != 3 or not isinstance(dims, list) or len(dims) != 1:
        return None
    weighted = weighted_product(unshaped(terms), shape, static)
    if weighted is None:
        return None
    last, router, passed = weighted
    looked_up, dim = last.ids is not None, dims[0] % 3
    chosen, rows = (shape[1], shape[0]) if looked_up else (shape[0], shape[1])
    if dim != (1 if looked_up else 0) or not isinstance(chosen, int):
        return None
    made = neurons(last, chosen, rows, static)
    experts = fake_value(last.weight).shape[0]
    if not looked_up and chosen != experts:
        return None
    density = chosen / max(experts, 1) if looked_up else density_of(router)
    fits = all(arranged(one, looked_up, chosen, rows) for one in router)
    if made is None or density is None or not fits:
        return None
    tokens, parts, inside = made
    return ExpertRegion(
        node,
        last.node,
        last.weight,
        tokens,
        parts,
        router,
        last.ids,
        chosen,
        rows,
        min(density, 1.0),
        frozenset(passed | inside | {last.node}),
    )


def weighted_product(
    node: Node, shape: tuple[Any, ...], static: frozenset[Node]
) -> tuple[ExpertProduct, tuple[Node, ...], set[Node]] | None:
    """(product, weights, operators passed) of a product of experts times one weight for each row."""
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
    if len(made) != 1 or not weights:
        return None
    return made[0], weights, reader.passed


def neurons(
    last: ExpertProduct, chosen: int, rows: Any, static: frozenset[Node]
) -> tuple[Node, tuple[ExpertFactor, ...], set[Node]] | None:
    """(tokens, factors, operators passed) of what the last product multiplies."""
    size, hidden = fake_value(last.weight).shape[2], unshaped(last.operand)
    reader = PointwiseReader(chosen * rows, size)
    try:
        terms = factors(reader.read(hidden))
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
        if part is None or first is None or part.length != size or first.ids is not last.ids:
            return None
        if fake_value(first.weight).shape[0] != fake_value(last.weight).shape[0]:
            return None
        source = repeated(first, chosen, rows)
        if source is None:
            return None
        tokens.add(source)
        made.append(ExpertFactor(product(mine), first.weight, part.start))
        inside |= {first.node, part.projection, reader.inputs[at]}
    return (tokens.pop(), tuple(made), inside) if len(tokens) == 1 else None


def expert_product(node: Node, static: frozenset[Node]) -> ExpertProduct | None:
    """A call as a product with a stack of weights, one row for each matrix of ids, or many."""
    if node.target not in (aten.bmm.default, aten.matmul.default):
        return None
    first, second = node.args[:2]
    if not isinstance(first, Node) or not isinstance(second, Node) or not is_float(node):
        return None
    if any(fake_value(one).dim() != 3 for one in (first, second)):
        return None
    for stack, operand, transposed in ((first, second, False), (second, first, True)):
        read = stack_of(stack, static)
        if read is None or read[2] is not transposed:
            continue
        weight, ids, _ = read
        single = fake_value(operand).shape[-1 if not transposed else 1]
        if ids is None and not transposed:
            return None
        if ids is not None and not same(single, 1):
            return None
        return ExpertProduct(node, weight, ids, operand)
    return None


def stack_of(node: Node, static: frozenset[Node]) -> tuple[Node, Node | None, bool] | None:
    """(weights, ids, transposed): a parameter [experts, out, in], or the ids' matrices of it."""
    transposed = False
    while node.target is aten.transpose.int and {d % 3 for d in node.args[1:]} == {1, 2}:  # type: ignore[operator]
        node, transposed = node.args[0], not transposed  # type: ignore[assignment]
    ids: Any = None
    if node.target is aten.index.Tensor and len(node.args[1]) == 1:  # type: ignore[arg-type]
        node, ids = node.args[0], node.args[1][0]  # type: ignore[index, assignment]
    elif node.target is aten.index_select.default and node.args[1] == 0:
        node, ids = node.args[0], node.args[2]  # type: ignore[assignment]
    if node not in static or fake_value(node).dim() != 3:
        return None
    if ids is None:
        return node, None, transposed
    if not isinstance(ids, Node) or not nonnegative(ids):
        return None
    return node, unshaped(ids), transposed


def repeated(first: ExpertProduct, chosen: int, rows: Any) -> Node | None:
    """The tokens, each of which stands for all its experts; None where rows are otherwise."""
    node, width = unshaped(first.operand), fake_value(first.weight).shape[2]
    if first.ids is None and all(map(same, fake_value(first.operand).shape, (1, rows, width))):
        return node
    if node.target is aten.expand.default:
        source = node.args[0]
        wanted = (rows, 1, width) if first.ids is not None else (1, rows, width)
        whole = (rows, chosen, width) if first.ids is not None else (chosen, rows, width)
        padded = (1, *fake_value(source).shape)[-3:]
        fits = len(padded) == 3 and all(map(same, padded, wanted))
        return unshaped(source) if fits and all(map(same, fake_value(node).shape, whole)) else None
    shape = fake_value(node).shape
    one_each = len(shape) == 2 and same(shape[0], rows) and same(shape[1], width)
    return node if one_each and chosen == 1 else None


def arranged(node: Node, looked_up: bool, chosen: int, rows: Any) -> bool:
    """Whether a weight has one number for each pair of a token and an expert."""
    shape = tuple(fake_value(node).shape)
    if looked_up:
        return bool(shape) and same(shape[-1], 1) and same(math.prod(shape), rows * chosen)
    return len(shape) == 3 and all(map(same, shape, (chosen, rows, 1)))


def density_of(router: tuple[Node, ...]) -> float | None:
    """Share of experts that are expected to have a weight; None where nothing is known."""
    facts = [fact.density for node in router for fact in frequent(node) if fact.value == 0]
    return min(facts, default=None)


def nonnegative(node: Node) -> bool:
    """Whether places counted from the end cannot be among some integers."""
    node = unshaped(node)
    source = node.args[0] if node.args else None
    if node.target is operator.getitem and isinstance(source, Node):
        return source.target in CHOICES and node.args[1] == 1
    return node.target in (aten.argmax.default, aten.argsort.default, aten.argsort.stable)


CHOICES = frozenset({aten.topk.default, aten.sort.default, aten.sort.stable, aten.max.dim})

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
