"""natural_zeros: weights that meet an activation's own zeros are not read.

    before   y[rows, n] = relu(z)[rows, k] @ W^T              all of W
    after    y = sum over k with relu(z)_k != 0 of relu(z)_k W^T[k]

    gated    y = (relu(g) * (x @ U^T)) @ W^T              rows of U and of W^T where relu(g) != 0

Exact: what is left out is a finite number times zero. (An infinity or NaN among weights that are
not read is not seen.) For few rows alone: the union of their lists is soon everything.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.pointwise_reader import NotPointwise, inputs_of
from tokenpass.graph.zeros import Part, ZeroRegion, columns_of, zero_regions
from tokenpass.ops.pointwise import Call, Expression, Input
from tokenpass.passes.base import Reason, RegionContext, RegionPass
from tokenpass.passes.projection_tail import DTYPES, Tail, following, matrix, shaped, tail_inputs
from tokenpass.rewrite.replacing import Calls, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.tracing import fake_value, module_path, source_line

aten = torch.ops.aten

PRIOR_DENSITY = 0.5
"""Share of entries that are not zero where nothing is known: a symmetric value before a relu.

Trained models have far fewer; the planner must not count on it.
"""

MOST_DENSITY = 0.9
"""Above this share of rows read, a dense product is as fast."""

MOST_ROWS = 8
"""Rows that the kernels are written for."""


class NaturalZeros(RegionPass):
    """The projections behind relu and its kin, gated or not."""

    name: ClassVar[str] = "natural_zeros"

    def replacements(
        self, context: RegionContext
    ) -> tuple[tuple[Replacement, ...], tuple[Rejection, ...]]:
        found: list[Replacement] = []
        refused: list[Rejection] = []
        for region in zero_regions(context.module.graph, context.static):
            reason = unsound(region, context)
            if reason is None:
                found.append(replacement(region))
                continue
            code, because, hint = reason
            where = module_path(region.down) or region.down.name
            refused.append(Rejection(code, where, because, hint, source_line(region.down)))
        return tuple(found), tuple(refused)


def unsound(region: ZeroRegion, context: RegionContext) -> Reason:
    """Why a region keeps its dense product; None if it need not."""
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
    if not fits(region.rows):
        because = f"{hinted(region.rows)} rows leave hardly an entry that is zero in all of them"
        return "too_many_rows", because, "nothing: a dense product is as fast"
    return None


def density(rows: int) -> float:
    """Expected share of entries that are not zero in every one of some rows."""
    return 1 - (1 - PRIOR_DENSITY) ** rows


def fits(rows: Any) -> bool:
    """Whether so few rows gain; a dynamic number is held there by a guard."""
    most = max(n for n in range(1, MOST_ROWS + 1) if density(n) <= MOST_DENSITY)
    return bool(rows <= most)


def replacement(region: ZeroRegion) -> Replacement:
    """The region's projection, and the pointwise operators that follow it, by our operators."""
    tail = following(region.down, region.rows)
    policy = "glu_neuron" if region.up is not None else "sparse_linear"
    make = neurons if region.up is not None else entries
    weight = fake_value(region.weight)
    return Replacement(
        tail.end,
        region.down,
        f"{module_path(region.down) or region.down.name}:projection",
        policy,
        str(region.entries),
        lambda calls: shaped(calls, make(calls, region, tail), tail.end),
        (policy,),
        weight.numel() * weight.element_size(),
    )


def entries(calls: Calls, region: ZeroRegion, tail: Tail) -> Node:
    """`[rows, n]`: the rows of W^T whose entries are not zero, weighted and summed."""
    inputs = [matrix(calls, calls[node]) for node in region.inputs]
    ops = torch.ops.tokenpass
    weight, extras = calls[region.weight], tail_inputs(calls, tail)
    share = density(int(hinted(region.rows)))
    before, behind = str(region.expression), str(tail.expression)
    return calls.call(
        ops.sparse_linear.default, inputs, before, None, weight, extras, behind, share
    )


def neurons(calls: Calls, region: ZeroRegion, tail: Tail) -> Node:
    """`[rows, n]`: the same, and the rows of U that are needed alone."""
    up, gate = region.up, region.gate
    if up is None or gate is None:
        raise NotPointwise
    read = sorted(inputs_of(gate))
    inputs = [gate_input(calls, region.inputs[at], up) for at in read]
    x = matrix(calls, calls[up.projection.args[0]])  # type: ignore[index]
    weight, bias = rows_of(calls, up)
    share = density(int(hinted(region.rows)))
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
