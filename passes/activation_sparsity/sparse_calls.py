"""Regions computed by the operators of activation sparsity, whatever decides what is listed.

y = epilogue(sum over listed k of x_k W^T[k])
y = epilogue(sum over listed i of g_i (U x)_i W^T[i])         rows of U that are listed alone
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from tokenpass.graph.pointwise_reader import NotPointwise, inputs_of
from tokenpass.graph.projections import Factor, Part, ProjectionRegion, columns_of
from tokenpass.ops.pointwise import Call, Expression, Input, Y, call
from tokenpass.passes.base import Reason, RegionContext
from tokenpass.passes.projection_tail import (
    DTYPES,
    MOST_ROWS,
    Tail,
    following,
    matrix,
    shaped,
    tail_inputs,
)
from tokenpass.rewrite.replacing import Calls, Given, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.tracing import fake_value, source_line

aten = torch.ops.aten

MOST_DENSITY = 0.9
"""Above this share of rows read, a dense product is as fast."""


def union(share: float, rows: int) -> float:
    """Expected share of entries that one of some rows has, if each has `share` of them."""
    return 1 - (1 - share) ** rows


def most_rows(share: float) -> int:
    """How many rows still gain if each has `share` of the entries."""
    few = (n for n in range(1, MOST_ROWS + 1) if union(share, n) <= MOST_DENSITY)
    return max(few, default=0)


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
    for one in (*region.factors, *region.parts):
        touched |= {one.part.projection, *one.part.projection.all_input_nodes}
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
    `[rows, entries]`; `given` is what came of an earlier call. `density`: the expected share of
    listed entries, for the cost model.
    """

    density: float
    constant: Callable[[], Tensor] | None = None
    computed: Callable[[Tensor], Tensor] | None = None
    given: Given | None = None


def replacement(
    region: ProjectionRegion,
    site: str,
    policy: str | None,
    level: str,
    listing: Listing,
    apart: frozenset[Node] = frozenset(),
) -> Replacement:
    """The region's projection, and the pointwise operators that follow it, by our operators.

    `policy`: what decides; the operator where it is the value itself. `apart`: operators that other
    regions compute themselves.
    """
    tail = following(region.down, region.rows, apart)
    make = way(region)
    operators = OPERATORS[make]
    weight = fake_value(region.weight)
    return Replacement(
        tail.end,
        region.down,
        site,
        policy or operators[-1],
        level,
        lambda calls: shaped(calls, make(calls, region, tail, listing), tail.end),
        operators,
        weight.numel() * weight.element_size(),
        instead=frozenset(computed_too(region)),
    )


def way(region: ProjectionRegion) -> Callable[[Calls, ProjectionRegion, Tail, Listing], Node]:
    """How a region is computed."""
    if region.parts:
        return placed
    if region.up is not None:
        return neurons
    return listed if region.factors else entries


def computed_too(region: ProjectionRegion) -> list[Node]:
    """The projections in front of a region that it computes itself, as far as they are needed."""
    if region.parts:
        return [one.part.projection for one in region.parts]
    return [] if region.up is None else [region.up.projection]


def entries(calls: Calls, region: ProjectionRegion, tail: Tail, listing: Listing) -> Node:
    """`[rows, n]`: the rows of W^T whose entries are listed, weighted and summed."""
    inputs, text = inputs_for(calls, region, region.expression)
    return calls.call(
        torch.ops.tokenpass.sparse_linear.default,
        inputs,
        text,
        limit(calls, region, listing),
        calls[region.weight],
        tail_inputs(calls, tail),
        str(tail.expression),
        listing.density,
    )


def inputs_for(
    calls: Calls, region: ProjectionRegion, expression: Expression
) -> tuple[list[Node], str]:
    """What an expression of the region's inputs reads, as matrices, and its text over those."""
    read = sorted(inputs_of(expression))
    inputs = [input_matrix(calls, region, region.inputs[at]) for at in read]
    return inputs, str(renumbered(expression, {old: new for new, old in enumerate(read)}))


def listed(calls: Calls, region: ProjectionRegion, tail: Tail, listing: Listing) -> Node:
    """`[rows, n]`: the same, and only the listed rows of what the gate is multiplied with.

    They come in the list's order, so that they meet the gate's values as they are kept.
    """
    if region.gate is None:
        raise NotPointwise
    ops, threshold = torch.ops.tokenpass, limit(calls, region, listing)
    found = calls.call(ops.mask_compact.default, *inputs_for(calls, region, region.gate), threshold)
    index, kept, count = (calls.call(operator.getitem, found, at) for at in range(3))
    for factor in region.factors:
        of = factor_rows(calls, factor, index, count, listing)
        kept = calls.call(aten.mul.Tensor, kept, of)
    return calls.call(
        ops.sparse_input_gemv.default,
        *(index, kept, count, calls[region.weight]),
        *(tail_inputs(calls, tail), str(tail.expression), listing.density),
    )


def placed(calls: Calls, region: ProjectionRegion, tail: Tail, listing: Listing) -> Node:
    """`[rows, n]`: the same where places alone decide: rows of every projection that are listed."""
    ops = torch.ops.tokenpass
    index, count = places(calls, listing)
    first, *rest = (factor_rows(calls, one, index, count, listing) for one in region.parts)
    kept = first
    for one in rest:
        kept = calls.call(aten.mul.Tensor, kept, one)
    return calls.call(
        ops.sparse_input_gemv.default,
        *(index, kept, count, calls[region.weight]),
        *(tail_inputs(calls, tail), str(tail.expression), listing.density),
    )


def places(calls: Calls, listing: Listing) -> tuple[Node, Node]:
    """The list of places and its length, given with each call."""
    if listing.given is None:
        raise NotPointwise
    index, count = listing.given.places()
    return calls.given(index), calls.given(count)


def factor_rows(calls: Calls, factor: Factor, index: Node, count: Node, listing: Listing) -> Node:
    """The listed entries of a function of a projection, float32 `[rows, entries]`."""
    weight, bias = rows_of(calls, factor.part)
    x = matrix(calls, calls[factor.part.projection.args[0]])  # type: ignore[index]
    extras = [] if bias is None else [calls.call(aten.unsqueeze.default, bias, 0)]
    y: Expression = Y if bias is None else call("add", Y, Input(0))
    text = str(put_in(factor.expression, y))
    return calls.call(
        torch.ops.tokenpass.sparse_output_gemv.default,
        *(x, index, count, weight, extras, text, listing.density),
    )


def put_in(expression: Expression, value: Expression) -> Expression:
    """An expression of one input with a value in its place."""
    if isinstance(expression, Input):
        return value
    if not isinstance(expression, Call):
        return expression
    return Call(expression.function, tuple(put_in(one, value) for one in expression.arguments))


def limit(calls: Calls, region: ProjectionRegion, listing: Listing) -> Node | None:
    """The listing's threshold as a value of the graph."""
    if listing.computed is not None:
        return calls.inlined(listing.computed, matrix(calls, calls[region.hidden]))
    if listing.given is not None:
        return calls.given(listing.given)
    if listing.constant is None:
        return None
    return calls.constant(listing.constant().to(fake_value(region.weight).device))


def neurons(calls: Calls, region: ProjectionRegion, tail: Tail, listing: Listing) -> Node:
    """`[rows, n]`: the same, and the rows of U that are needed alone."""
    up, gate = region.up, region.gate
    if up is None or gate is None:
        raise NotPointwise
    read = sorted(inputs_of(gate))
    inputs = [gate_input(calls, region, region.inputs[at], up) for at in read]
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


def gate_input(calls: Calls, region: ProjectionRegion, node: Node, up: Part) -> Node:
    """A value that the gate reads; of the projection that gives `up` too, its own columns alone."""
    part = None if node in region.blocked else columns_of(node)
    if part is None or part.projection is not up.projection:
        return input_matrix(calls, region, node)
    weight, bias = rows_of(calls, part)
    x = matrix(calls, calls[up.projection.args[0]])  # type: ignore[index]
    return calls.call(aten.linear.default, x, weight, bias)


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


OPERATORS: dict[Callable[[Calls, ProjectionRegion, Tail, Listing], Node], tuple[str, ...]] = {
    entries: ("sparse_linear",),
    listed: ("mask_compact", "sparse_input_gemv", "sparse_output_gemv"),
    neurons: ("glu_neuron",),
    placed: ("sparse_output_gemv", "sparse_input_gemv"),
}
"""What each way of computing a region calls; the last names it."""
