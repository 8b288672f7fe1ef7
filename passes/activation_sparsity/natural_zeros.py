"""natural_zeros: weights that meet an activation's own zeros are not read.

    before   y[rows, n] = relu(z)[rows, k] @ W^T              all of W
    after    y = sum over k with relu(z)_k != 0 of relu(z)_k W^T[k]

    gated    y = (relu(g) * (x @ U^T)) @ W^T              rows of U and of W^T where relu(g) != 0
    routed   y = (r * silu(x @ U^T)) @ W^T                the same where the router's r != 0

Exact: what is left out is a finite number times zero. (An infinity or NaN among weights that are
not read is not seen.) For few rows alone: the union of their lists is soon everything.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.pointwise_reader import NotPointwise, PointwiseReader, inputs_of
from tokenpass.graph.projections import Part, ProjectionRegion, columns_of, projections
from tokenpass.graph.routers import router_blocks
from tokenpass.graph.zeros import zero_regions
from tokenpass.ops.pointwise import Call, Expression, Input, Y, call
from tokenpass.passes.base import Reason, RegionContext, RegionPass
from tokenpass.rewrite.replacing import Calls, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.tracing import fake_value, source_line

aten = torch.ops.aten

PRIOR_DENSITY = 0.5
"""Share of entries that are not zero where nothing is known: a symmetric value before a relu.

Trained models have far fewer; the planner must not count on it.
"""

MOST_DENSITY = 0.9
"""Above this share of rows read, a dense product is as fast."""

MOST_ROWS = 8
"""Rows that the kernels are written for."""

MOST_FOLLOWING = 4
"""Pointwise operators behind the projection that its kernel computes too."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class NaturalZeros(RegionPass):
    """The projections behind relu and its kin, gated or not."""

    name: ClassVar[str] = "natural_zeros"

    def replacements(
        self, context: RegionContext
    ) -> tuple[tuple[Replacement, ...], tuple[Rejection, ...]]:
        found: list[Replacement] = []
        refused: list[Rejection] = []
        names = projections(context.module.graph, context.static)
        for region in zero_regions(context.module.graph, context.static):
            reason, name = unsound(region, context), names[region.down]
            if reason is None:
                found.append(replacement(region, name))
                continue
            code, because, hint = reason
            refused.append(Rejection(code, name, because, hint, source_line(region.down)))
        return tuple(found), tuple(refused)


def unsound(region: ProjectionRegion, context: RegionContext) -> Reason:
    """Why a region keeps its dense product; None if it need not."""
    weight = fake_value(region.weight)
    if weight.dtype not in DTYPES or fake_value(region.down).dtype != weight.dtype:
        return "region_dtype", f"the weight is {weight.dtype}", "float32, bfloat16 or float16"
    if any(fake_value(node).dtype not in DTYPES for node in region.inputs):
        return "region_dtype", "a value that it reads is of another type", "one of the three"
    touched = {region.down, region.weight, *region.nodes, *region.inputs}
    if region.up is not None:  # its input is read later than it was
        touched |= {region.up.projection, *region.up.projection.all_input_nodes}
    for one in region.factors:
        touched |= {one.part.projection, *one.part.projection.all_input_nodes}
    for node in touched:
        if node in context.written:
            line = source_line(context.written[node]) or context.written[node].name
            return "mutated_alias", f"{node.name} is written to in place by {line}", ""
    if sum(not isinstance(size, int) for size in fake_value(region.down).shape) > 1:
        return "dynamic_rows", "its rows are counted by several dynamic sizes", "one of them fixed"
    if not fits(region.rows, region.density):
        because = f"{hinted(region.rows)} rows leave hardly an entry that is zero in all of them"
        return "too_many_rows", because, "nothing: a dense product is as fast"
    return None


def density(rows: int, share: float = PRIOR_DENSITY) -> float:
    """Expected share of entries that are not zero in every one of some rows, each with `share`."""
    return 1 - (1 - share) ** rows


def fits(rows: Any, share: float = PRIOR_DENSITY) -> bool:
    """Whether so few rows gain; a dynamic number is held there by a guard."""
    few = (n for n in range(1, MOST_ROWS + 1) if density(n, share) <= MOST_DENSITY)
    return bool(rows <= max(few, default=0))


def replacement(region: ProjectionRegion, name: str) -> Replacement:
    """The region's projection, and the pointwise operators that follow it, by our operators."""
    tail = following(region)
    make = neurons if region.up is not None else listed if region.factors else entries
    operators = OPERATORS[make]
    weight = fake_value(region.weight)
    return Replacement(
        tail.end,
        region.down,
        name,
        operators[-1],
        level(region),
        lambda calls: shaped(calls, make(calls, region, tail), tail.end),
        operators,
        weight.numel() * weight.element_size(),
    )


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows a projection: `end` is `expression` of it and `inputs`."""

    end: Node
    expression: Expression
    inputs: tuple[Node, ...]


def following(region: ProjectionRegion) -> Tail:
    """The longest run of pointwise operators that only the next one reads, all of one shape."""
    down, run = region.down, [region.down]
    kept = read_tail(region, run)
    while len(run) <= MOST_FOLLOWING and len(run[-1].users) == 1:
        run += run[-1].users
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


def read_tail(region: ProjectionRegion, run: Sequence[Node]) -> Tail:
    """The last of some operators as an expression of the projection; raises `NotPointwise`."""
    outputs, within = fake_value(region.down).shape[-1], frozenset(run)
    reader = PointwiseReader(region.rows, outputs, region.down, region.bias, within)
    expression = reader.read(run[-1])
    readable = all(fake_value(node).dtype in DTYPES for node in reader.inputs)
    if region.down not in reader.passed or not readable:
        raise NotPointwise
    return Tail(run[-1], expression, tuple(reader.inputs))


def entries(calls: Calls, region: ProjectionRegion, tail: Tail) -> Node:
    """`[rows, n]`: the rows of W^T whose entries are not zero, weighted and summed."""
    return products(calls, region, tail, active(calls, region, region.expression))


@dataclass(frozen=True, eq=False)
class Active:
    """A list of entries, and their values in its order."""

    index: Node
    kept: Node
    count: Node


def active(calls: Calls, region: ProjectionRegion, expression: Expression) -> Active:
    """The entries where an expression of the region's inputs is not zero."""
    read = sorted(inputs_of(expression))
    inputs = [input_matrix(calls, region, region.inputs[at]) for at in read]
    text = str(renumbered(expression, {old: new for new, old in enumerate(read)}))
    found = calls.call(torch.ops.tokenpass.mask_compact.default, inputs, text, None)
    return Active(*(calls.call(operator.getitem, found, at) for at in range(3)))


def products(calls: Calls, region: ProjectionRegion, tail: Tail, found: Active) -> Node:
    """`[rows, n]`: the list's rows of W^T, weighted and summed, and what follows."""
    return calls.call(
        torch.ops.tokenpass.sparse_input_gemv.default,
        found.index,
        found.kept,
        found.count,
        calls[region.weight],
        tail_inputs(calls, tail),
        str(tail.expression),
        share_read(region),
    )


def level(region: ProjectionRegion) -> str:
    """The entries, or of a router's blocks `read*size`: those that are expected to be read."""
    blocks = router_blocks(region)
    if blocks is None:
        return str(region.entries)
    number, size = blocks
    return f"{math.ceil(number * share_read(region))}*{size}"


def share_read(region: ProjectionRegion) -> float:
    """Expected share of a region's entries that are listed."""
    return density(int(hinted(region.rows)), region.density)


def listed(calls: Calls, region: ProjectionRegion, tail: Tail) -> Node:
    """`[rows, n]`: the same, and only the listed rows of what the gate is multiplied with.

    They come in the list's order, so that they meet the gate's values as they are kept.
    """
    if region.gate is None:
        raise NotPointwise
    found = active(calls, region, region.gate)
    for factor in region.factors:
        weight, bias = rows_of(calls, factor.part)
        x = matrix(calls, calls[factor.part.projection.args[0]])  # type: ignore[index]
        extras = [] if bias is None else [calls.call(aten.unsqueeze.default, bias, 0)]
        y: Expression = Y if bias is None else call("add", Y, Input(0))
        of = calls.call(
            torch.ops.tokenpass.sparse_output_gemv.default,
            x,
            found.index,
            found.count,
            weight,
            extras,
            str(put_in(factor.expression, y)),
            share_read(region),
        )
        found = replace(found, kept=calls.call(aten.mul.Tensor, found.kept, of))
    return products(calls, region, tail, found)


def put_in(expression: Expression, value: Expression) -> Expression:
    """An expression of one input with a value in its place."""
    if isinstance(expression, Input):
        return value
    if not isinstance(expression, Call):
        return expression
    return Call(expression.function, tuple(put_in(one, value) for one in expression.arguments))


def neurons(calls: Calls, region: ProjectionRegion, tail: Tail) -> Node:
    """`[rows, n]`: the same, and the rows of U that are needed alone."""
    up, gate = region.up, region.gate
    if up is None or gate is None:
        raise NotPointwise
    read = sorted(inputs_of(gate))
    inputs = [gate_input(calls, region, region.inputs[at], up) for at in read]
    x = matrix(calls, calls[up.projection.args[0]])  # type: ignore[index]
    weight, bias = rows_of(calls, up)
    share = share_read(region)
    return calls.call(
        torch.ops.tokenpass.glu_neuron.default,
        x,
        inputs,
        str(renumbered(gate, {old: new for new, old in enumerate(read)})),
        None,
        weight,
        bias,
        calls[region.weight],
        tail_inputs(calls, tail),
        str(tail.expression),
        share,
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


def gate_input(calls: Calls, region: ProjectionRegion, node: Node, up: Part) -> Node:
    """A value that the gate reads; of the projection that gives `up` too, its own columns alone."""
    part = None if node in region.blocked else columns_of(node)
    if part is None or part.projection is not up.projection:
        return input_matrix(calls, region, node)
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


def input_matrix(calls: Calls, region: ProjectionRegion, node: Node) -> Node:
    """A value that the region reads as `[rows, entries]`, 1 where it is one for all.

    A value in blocks is spread over them: `[rows, blocks, 1]` has few numbers.
    """
    blocks, copied = region.blocked.get(node), calls[node]
    shape = fake_value(node).shape
    if blocks is None or all(isinstance(size, int) and size == 1 for size in shape[-2:]):
        return matrix(calls, copied)
    lead = [-1] * max(len(shape) - 2, 0)
    spread = calls.call(aten.expand.default, copied, [*lead, *blocks])
    return calls.call(aten.reshape.default, spread, [-1, blocks[0] * blocks[1]])


def matrix(calls: Calls, node: Node) -> Node:
    """A value as `[rows, columns]`."""
    shape = fake_value(node).shape
    if len(shape) == 2:
        return node
    return calls.call(aten.reshape.default, node, [-1, shape[-1] if shape else 1])


OPERATORS: dict[Callable[[Calls, ProjectionRegion, Tail], Node], tuple[str, ...]] = {
    entries: ("mask_compact", "sparse_input_gemv"),
    listed: ("mask_compact", "sparse_input_gemv", "sparse_output_gemv"),
    neurons: ("glu_neuron",),
}
"""What each way of computing a region calls; the last names it."""


def shaped(calls: Calls, made: Node, like: Node) -> Node:
    """A matrix in another value's shape, of whose sizes one at most is dynamic."""
    shape = [size if isinstance(size, int) else -1 for size in fake_value(like).shape]
    return made if len(shape) == 2 else calls.call(aten.reshape.default, made, shape)
