"""Regions computed by the operators of activation sparsity, whatever decides what is listed.

y = epilogue(sum over listed k of x_k W^T[k])
y = epilogue(sum over listed i of g_i (U x)_i W^T[i])         rows of U that are listed alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from tokenpass.graph.pointwise_reader import NotPointwise, inputs_of
from tokenpass.graph.projections import Part, ProjectionRegion, columns_of
from tokenpass.ops.pointwise import Call, Expression, Input
from tokenpass.passes.base import Reason, RegionContext
from tokenpass.passes.projection_tail import DTYPES, Tail, following, matrix, shaped, tail_inputs
from tokenpass.rewrite.replacing import Calls, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.tracing import fake_value, source_line

aten = torch.ops.aten

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
    tail = following(region.down, region.rows, apart)
    make = neurons if region.up is not None else entries
    weight = fake_value(region.weight)
    return Replacement(
        tail.end,
        region.down,
        site,
        policy,
        level,
        lambda calls: shaped(calls, make(calls, region, tail, listing), tail.end),
        ("glu_neuron",) if region.up is not None else ("sparse_linear",),
        weight.numel() * weight.element_size(),
    )


def entries(calls: Calls, region: ProjectionRegion, tail: Tail, listing: Listing) -> Node:
    """`[rows, n]`: the rows of W^T whose entries are listed, weighted and summed."""
    inputs = [matrix(calls, calls[node]) for node in region.inputs]
    return calls.call(
        torch.ops.tokenpass.sparse_linear.default,
        inputs,
        str(region.expression),
        limit(calls, region, listing),
        calls[region.weight],
        tail_inputs(calls, tail),
        str(tail.expression),
        listing.density,
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
