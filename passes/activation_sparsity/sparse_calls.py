"""Regions computed by the operators of activation sparsity, whatever decides what is listed.

y = epilogue(sum over listed k of x_k W^T[k])
y = epilogue(sum over listed i of g_i (U x)_i W^T[i])         rows of U that are listed alone
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from tokenpass.graph.pointwise_reader import NotPointwise, PointwiseReader, inputs_of
from tokenpass.graph.projections import Part, ProjectionRegion, columns_of
from tokenpass.ops.pointwise import Call, Expression, Input
from tokenpass.passes.base import Reason, RegionContext
from tokenpass.rewrite.replacing import Calls, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.tracing import fake_value, source_line

aten = torch.ops.aten

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MOST_FOLLOWING = 4
"""Pointwise operators behind the projection that its kernel computes too."""


MOST_DENSITY = 0.9
"""Above this share of rows read, a dense product is as fast."""

MOST_ROWS = 8
"""Rows that the kernels are written for."""


def unsound(region: ProjectionRegion, context: RegionContext, most: int) -> Reason:
    """Why a region keeps its dense product; None if it need not.

    `most`: rows that still gain; a dynamic number is held there by a guard.
    """
    weight = fake_value(region.weight)
    if weight.dtype not in DTYPES or fake_value(region.down).dtype != weight.dtype:
        return "region_dtype", f"the weight is {weight.dtype}", "float32, bfloat16 or float16"
    if any(fake_value(node).dtype not in DTYPES for node in region.inputs):
        return "region_dtype", "a value that it reads is of another type", "one of the three"
    touched = {region.down, region.weight, *region.nodes, *region.inputs}
    if region.up is not None:  # its input is read later than it was
        touched |= {region.up.projection, *region.up.projection.all_input_nodes}
    for node in touched:
        if node in context.written:
            line = source_line(context.written[node]) or context.written[node].name
            return "mutated_alias", f"{node.name} is written to in place by {line}", ""
    if sum(not isinstance(size, int) for size in fake_value(region.down).shape) > 1:
        return "dynamic_rows", "its rows are counted by several dynamic sizes", "one of them fixed"
    if not bool(region.rows <= most):
        because = f"{hinted(region.rows)} rows leave hardly an entry that none of them needs"
        return "too_many_rows", because, "nothing: a dense product is as fast"
    return None


@dataclass(frozen=True, eq=False)
class Listing:
    """Which entries are listed: those above a threshold, `[1]` or `[entries]`, or not zero.

    `constant` gives one that the graph holds; `computed` gives it in every call, from the input,
    `[rows, entries]`. `density`: the expected share of listed entries, for the cost model.
    """

    density: float
    constant: Callable[[], Tensor] | None = None
    computed: Callable[[Tensor], Tensor] | None = None


def replacement(
    region: ProjectionRegion,
    site: str,
    policy: str,
    level: str,
    listing: Listing,
    apart: frozenset[Node] = frozenset(),
) -> Replacement:
    """The region's projection, and the pointwise operators that follow it, by our operators.

    `apart`: operators that other regions compute themselves.
    """
    tail = following(region, apart)
    make = neurons if region.up is not None else entries
    weight = fake_value(region.weight)
    return Replacement(
        tail.end,
        region.down,
        site,
        policy,
        level,
        lambda calls: shaped(calls, make(calls, region, tail, listing), tail.end),
        ("glu_neuron",) if region.up is not None else ("mask_compact", "sparse_input_gemv"),
        weight.numel() * weight.element_size(),
        frozenset() if region.up is None else frozenset({region.up.projection}),
    )


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows a projection: `end` is `expression` of it and `inputs`."""

    end: Node
    expression: Expression
    inputs: tuple[Node, ...]


def following(region: ProjectionRegion, apart: frozenset[Node]) -> Tail:
    """The longest run of pointwise operators that only the next one reads, all of one shape.

    What joins a later projection's result is left to that one, so that no two regions compute one
    value; `apart`: operators that another region computes itself.
    """
    down, run = region.down, [region.down]
    kept = read_tail(region, run)
    while len(run) <= MOST_FOLLOWING and len(run[-1].users) == 1:
        run += run[-1].users
        others = (node for node in run[-1].all_input_nodes if node is not run[-2])
        if run[-1] in apart or any(comes_later(node, down) for node in others):
            break
        value = fake_value(run[-1])
        if not isinstance(value, torch.Tensor) or value.dtype != fake_value(down).dtype:
            break
        if sum(not isinstance(size, int) for size in value.shape) > 1:
            break
        try:
            kept = read_tail(region, run)
        except NotPointwise:
            break
    return kept


def comes_later(node: Node, down: Node) -> bool:
    """Whether a later projection has a part in a value."""
    seen, queue = {node}, [node]
    while queue:
        one = queue.pop()
        if not down < one:
            continue
        if one.target is aten.linear.default:
            return True
        queue += [source for source in one.all_input_nodes if source not in seen]
        seen.update(one.all_input_nodes)
    return False


def read_tail(region: ProjectionRegion, run: Sequence[Node]) -> Tail:
    """The last of some operators as an expression of the projection; raises `NotPointwise`."""
    outputs, within = fake_value(region.down).shape[-1], frozenset(run)
    reader = PointwiseReader(region.rows, outputs, region.down, region.bias, within)
    expression = reader.read(run[-1])
    readable = all(fake_value(node).dtype in DTYPES for node in reader.inputs)
    if region.down not in reader.passed or not readable:
        raise NotPointwise
    return Tail(run[-1], expression, tuple(reader.inputs))


def entries(calls: Calls, region: ProjectionRegion, tail: Tail, listing: Listing) -> Node:
    """`[rows, n]`: the rows of W^T whose entries are listed, weighted and summed."""
    inputs = [matrix(calls, calls[node]) for node in region.inputs]
    ops = torch.ops.tokenpass
    threshold = limit(calls, region, listing)
    found = calls.call(ops.mask_compact.default, inputs, str(region.expression), threshold)
    index, kept, count = (calls.call(operator.getitem, found, at) for at in range(3))
    weight, extras = calls[region.weight], tail_inputs(calls, tail)
    text = str(tail.expression)
    return calls.call(
        ops.sparse_input_gemv.default, index, kept, count, weight, extras, text, listing.density
    )


def limit(calls: Calls, region: ProjectionRegion, listing: Listing) -> Node | None:
    """The listing's threshold as a value of the graph."""
    if listing.computed is not None:
        return calls.inlined(listing.computed, matrix(calls, calls[region.hidden]))
    if listing.constant is None:
        return None
    return calls.constant(listing.constant().to(fake_value(region.weight).device))


def neurons(calls: Calls, region: ProjectionRegion, tail: Tail, listing: Listing) -> Node:
    """`[rows, n]`: the same, and the rows of U that are needed alone."""
    up, gate = region.up, region.gate
    if up is None or gate is None:
        raise NotPointwise
    read = sorted(inputs_of(gate))
    inputs = [gate_input(calls, region.inputs[at], up) for at in read]
    x = matrix(calls, calls[up.projection.args[0]])  # type: ignore[index]
    weight, bias = rows_of(calls, up)
    return calls.call(
        torch.ops.tokenpass.glu_neuron.default,
        x,
        inputs,
        str(renumbered(gate, {old: new for new, old in enumerate(read)})),
        limit(calls, region, listing),
        weight,
        bias,
        calls[region.weight],
        tail_inputs(calls, tail),
        str(tail.expression),
        listing.density,
    )


def renumbered(expression: Expression, numbers: dict[int, int]) -> Expression:
    """The expression with its inputs numbered anew."""
    if isinstance(expression, Input):
        return Input(numbers[expression.index])
    if not isinstance(expression, Call):
        return expression
    return Call(
        expression.function, tuple(renumbered(one, numbers) for one in expression.arguments)
    )


def gate_input(calls: Calls, node: Node, up: Part) -> Node:
    """A value that the gate reads; of the projection that gives `up` too, its own columns alone."""
    part = columns_of(node)
    if part is None or part.projection is not up.projection:
        return matrix(calls, calls[node])
    weight, bias = rows_of(calls, part)
    x = matrix(calls, calls[up.projection.args[0]])  # type: ignore[index]
    return calls.call(aten.linear.default, x, weight, bias)


def rows_of(calls: Calls, part: Part) -> tuple[Node, Node | None]:
    """The weight and bias of some columns of a projection: slices, nothing is copied."""
    _, weight, *rest = part.projection.args
    bias = rest[0] if rest and isinstance(rest[0], Node) else None
    if not isinstance(weight, Node):
        raise NotPointwise
    whole = fake_value(weight).shape[0] == part.length
    pieces = [
        None
        if one is None
        else calls[one]
        if whole
        else calls.call(aten.slice.Tensor, calls[one], 0, part.start, part.start + part.length)
        for one in (weight, bias)
    ]
    return pieces[0], pieces[1]  # type: ignore[return-value]


def tail_inputs(calls: Calls, tail: Tail) -> list[Node]:
    """What the operators behind the projection read, as matrices."""
    return [matrix(calls, calls[node]) for node in tail.inputs]


def matrix(calls: Calls, node: Node) -> Node:
    """A value as `[rows, columns]`."""
    shape = fake_value(node).shape
    if len(shape) == 2:
        return node
    return calls.call(aten.reshape.default, node, [-1, shape[-1] if shape else 1])


def shaped(calls: Calls, made: Node, like: Node) -> Node:
    """A matrix in another value's shape, of whose sizes one at most is dynamic."""
    shape = [size if isinstance(size, int) else -1 for size in fake_value(like).shape]
    return made if len(shape) == 2 else calls.call(aten.reshape.default, made, shape)
