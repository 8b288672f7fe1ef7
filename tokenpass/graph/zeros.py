"""Projections of values that are exactly zero in many places, and what need not be computed there.

    y = W f(x),  f(x)_i = 0 wherever z(x)_i = 0      rows of W^T that meet zeros are not read
    y = W (g * (U x)),  g_i = 0                      nor are the rows of U whose product is dropped

z is a function that is zero on whole intervals (relu and its kin). That f is zero with it is found
by evaluating the expression with z = 0: `pointwise.is_zero_where`, the others being finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch.fx import Graph, Node

from tokenpass.graph.projections import ProjectionRegion, gated, projection_region
from tokenpass.ops.pointwise import Call, Expression, Number, is_zero_where, parts
from tokenpass.tracing import calls


def zero_regions(graph: Graph, static: frozenset[Node]) -> list[ProjectionRegion]:
    """All such projections, in graph order; `static`: the placeholders that are parameters."""
    found = (zero_region(node, static) for node in calls(graph))
    return [region for region in found if region is not None]


def zero_region(node: Node, static: frozenset[Node]) -> ProjectionRegion | None:
    """The region that ends in a projection; None where its input has no natural zeros."""
    region = projection_region(node, static)
    zero = None if region is None else next(natural_zeros(region.expression), None)
    if region is None or zero is None:
        return None
    region = replace(region, zero=zero)
    return gated(region, static) or region


def natural_zeros(expression: Expression) -> Iterator[Expression]:
    """Parts that are zero on intervals, and with them the whole expression."""
    for part in dict.fromkeys(parts(expression)):
        if not isinstance(part, Call) or not is_zero_on_interval(part):
            continue
        if part == expression or is_zero_where(expression, [part]):
            yield part


def is_zero_on_interval(part: Call) -> bool:
    """Whether a function maps whole intervals to 0."""
    zero = [isinstance(a, Number) and a.value == 0.0 for a in part.arguments]
    match part.function:
        case "relu":
            return True
        case "maximum" | "minimum":
            return any(zero)
        case "clamp":
            return zero[1] or zero[2]
        case "where_gt":
            return zero[2] or zero[3]
    return False
