"""Projections with what they multiply read as an expression, and their names.

y = W h,  h = f(inputs)                  one region: h, and where f is a product
y = W (g(inputs) * (U x))                with the columns of another projection, its gate g
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from tokenpass.graph.frequent import UNKNOWN_SHARE
from tokenpass.graph.pointwise_reader import NotPointwise, PointwiseReader, inputs_of, same
from tokenpass.ops.pointwise import Call, Expression, Input, call, is_zero_where
from tokenpass.tracing import calls, fake_value, is_float, module_path

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Part:
    """Columns `start` to `start + length` of a projection: rows of its weight."""

    projection: Node
    start: int
    length: int


@dataclass(frozen=True, eq=False)
class Factor:
    """A function of columns of a projection: its one input stands for them."""

    expression: Expression
    part: Part


@dataclass(frozen=True, eq=False)
class ProjectionRegion:
    """One projection `down` of a value, `rows` times `entries` of it.

    `hidden`: that value, as an `expression` of `inputs`. `nodes`: the operators that the expression
    covers. `zero`: a part of the expression that is zero on intervals, and the whole with it; None
    where nothing is known to be. `up`: the projection whose result is one factor of the value and
    used nowhere else; `gate` is then the product of the other factors. `blocked`: the inputs whose
    columns lie in blocks (number, size), or repeat within or across them. `density`: the share of
    entries of one row that are expected not to be zero, where `zero` is. `factors`: where no `up`
    says it, what else the gate is multiplied with, needed nowhere else. `parts`: the whole value as
    the product of these, where somebody asked for it.
    """

    down: Node
    hidden: Node
    expression: Expression
    inputs: tuple[Node, ...]
    nodes: frozenset[Node]
    rows: Any
    entries: int
    zero: Expression | None = None
    gate: Expression | None = None
    up: Part | None = None
    blocked: Mapping[Node, tuple[int, int]] = field(default_factory=dict)
    density: float = UNKNOWN_SHARE
    factors: tuple[Factor, ...] = ()
    parts: tuple[Factor, ...] = ()

    @property
    def weight(self) -> Node:
        """The projection's weight, `[out, entries]`."""
        return self.down.args[1]  # type: ignore[return-value]

    @property
    def bias(self) -> Node | None:
        """What the projection adds."""
        bias = self.down.args[2] if len(self.down.args) > 2 else None
        return bias if isinstance(bias, Node) else None


def projections(graph: Graph, static: frozenset[Node]) -> dict[Node, str]:
    """All projections in graph order, each with its name in plans and calibrations.

    The name is that of its module, the same in every graph of a model (a prefill, a decoding step);
    a module's later calls are numbered. `static`: the placeholders that are parameters.
    """
    seen: Counter[str] = Counter()
    names: dict[Node, str] = {}
    for node in calls(graph):
        if not is_projection(node, static):
            continue
        path = module_path(node) or node.name
        names[node] = f"{path}:projection" + (f"#{seen[path]}" if seen[path] else "")
        seen[path] += 1
    return names


def is_projection(node: Node, static: frozenset[Node]) -> bool:
    """Whether a call is a linear layer with a parameter for its weight."""
    weight = node.args[1] if node.target is aten.linear.default else None
    if not isinstance(weight, Node) or weight not in static or not is_float(node):
        return False
    return fake_value(weight).dim() == 2


def projection_region(node: Node, static: frozenset[Node]) -> ProjectionRegion | None:
    """The region that ends in a projection; None where its input cannot be read as a matrix."""
    if not is_projection(node, static) or not isinstance(node.args[0], Node):
        return None
    hidden = node.args[0]
    value = fake_value(hidden)
    entries = value.shape[-1]
    if not isinstance(entries, int) or value.dim() < 1:
        return None
    rows = math.prod(value.shape[:-1])
    reader = PointwiseReader(rows, entries)
    try:
        expression = reader.read(hidden)
    except NotPointwise:
        return None
    inputs, nodes = tuple(reader.inputs), frozenset(reader.passed)
    region = ProjectionRegion(node, hidden, expression, inputs, nodes, rows, entries)
    return replace(region, blocked=reader.blocked) if reader.blocked else region


def gated(region: ProjectionRegion, static: frozenset[Node]) -> ProjectionRegion | None:
    """The region as a gate times a projection that is needed nowhere else; None if it is none.

    Where the region has a zero, the gate must have it too.
    """
    terms = factors(region.expression)
    for term in terms:
        if not isinstance(term, Input):
            continue
        others = [other for other in terms if other is not term]
        if any(term.index in inputs_of(other) for other in others) or not others:
            continue
        gate, zero = product(others), region.zero
        if zero is not None and gate != zero and not is_zero_where(gate, [zero]):
            continue
        up = projected(region, region.inputs[term.index], static)
        if up is not None:
            return replace(region, gate=gate, up=up)
    return None


def in_parts(region: ProjectionRegion, static: frozenset[Node]) -> tuple[Factor, ...]:
    """The value as a product of functions of projections that only the region needs.

    Empty where it is none: then entries of it cannot be computed alone.
    """
    terms: dict[int, list[Expression]] = {}
    constants: list[Expression] = []
    for term in factors(region.expression):
        read = inputs_of(term)
        if len(read) > 1:
            return ()
        if read:
            terms.setdefault(min(read), []).append(term)
        else:
            constants.append(term)
    found: list[Factor] = []
    for at, mine in terms.items():
        part = projected(region, region.inputs[at], static)
        if part is None or region.inputs[at] in region.blocked:
            return ()
        found.append(Factor(product([*mine, *constants]), part))
        constants = []
    return tuple(found)


def factors(expression: Expression) -> list[Expression]:
    """The factors of a product, products among them opened."""
    if isinstance(expression, Call) and expression.function == "mul":
        return [one for argument in expression.arguments for one in factors(argument)]
    return [expression]


def product(terms: Sequence[Expression]) -> Expression:
    """Their product."""
    first, *rest = terms
    for term in rest:
        first = call("mul", first, term)
    return first


def projected(region: ProjectionRegion, node: Node, static: frozenset[Node]) -> Part | None:
    """A value as the columns of a projection of `entries` each, if only the region needs it."""
    if needed_elsewhere(region, node):
        return None
    part = columns_of(node)
    if part is None or not is_projection(part.projection, static):
        return None
    length = fake_value(node).shape[-1]
    rows = math.prod(fake_value(node).shape[:-1])
    source = fake_value(part.projection.all_input_nodes[0])
    whole = same(math.prod(source.shape[:-1]), rows) and same(rows, region.rows)
    return part if whole and length == region.entries == part.length else None


def needed_elsewhere(region: ProjectionRegion, node: Node) -> bool:
    """Whether something computed from a value is read outside a region (a norm's statistics)."""
    inside = region.nodes | {region.down}
    seen, queue = {node}, [node]
    while queue:
        for user in queue.pop().users:
            if user not in inside:
                return True
            if user is not region.down and user not in seen:
                seen.add(user)
                queue.append(user)
    return False


def columns_of(node: Node) -> Part | None:
    """A value as columns of a call's result; all of them where it is no part."""
    value = fake_value(node)
    if not isinstance(value, torch.Tensor) or not value.dim():
        return None
    width = value.shape[-1]
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return piece_of(node.args[0], node.args[1])
    if node.target is aten.slice.Tensor and isinstance(node.args[0], Node):
        source, dim, start, stop, step = sliced(node)
        size = fake_value(source).shape[-1]
        last = dim in (-1, fake_value(source).dim() - 1)
        if not last or step != 1 or not all(isinstance(x, int) for x in (start, stop, size)):
            return None
        start = min(start + size, size) if start < 0 else min(start, size)
        stop = stop + size if stop < 0 else min(stop, size)
        return Part(source, start, stop - start)
    return Part(node, 0, width) if isinstance(width, int) else None


def sliced(node: Node) -> tuple[Node, int, Any, Any, Any]:
    """A slice's source and bounds."""
    source, dim, start, stop, step = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
    return (
        source,  # type: ignore[return-value]
        dim,
        0 if start is None else start,
        fake_value(source).shape[dim] if stop is None else stop,  # type: ignore[arg-type, index]
        step,
    )


def piece_of(cut: Node, index: Any) -> Part | None:
    """One of the pieces that a value is cut into along its last dimension."""
    source = cut.args[0] if cut.args else None
    if cut.target not in CUTS or not isinstance(source, Node) or not isinstance(index, int):
        return None
    dim = cut.args[2] if len(cut.args) > 2 else cut.kwargs.get("dim", 0)
    if dim not in (-1, fake_value(source).dim() - 1):
        return None
    lengths = [piece.shape[-1] for piece in fake_value(cut)]
    if not all(isinstance(length, int) for length in lengths):
        return None
    return Part(source, sum(lengths[:index]), lengths[index])


CUTS = frozenset(
    {
        aten.chunk.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.split.sizes,
        aten.tensor_split.sections,
    }
)
