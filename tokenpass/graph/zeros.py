"""Projections of values that are exactly zero in many places, and what need not be computed there.

    y = W f(x),  f(x)_i = 0 wherever z(x)_i = 0      rows of W^T that meet zeros are not read
    y = W (g * (U x)),  g_i = 0                      nor are the rows of U whose product is dropped

z is a function that is zero on whole intervals (relu and its kin), or a value of which the graph
says so (`frequent`: a router's, spread over the experts' neurons). That f is zero with it is found
by evaluating the expression with z = 0: `pointwise.is_zero_where`, the others being finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch.fx import Graph, Node

from tokenpass.graph.frequent import frequent, is_zero_on_interval
from tokenpass.graph.projections import ProjectionRegion, gated, projection_region
from tokenpass.graph.routers import routed
from tokenpass.ops.pointwise import Call, Expression, Input, is_zero_where, parts
from tokenpass.tracing import calls


def zero_regions(graph: Graph, static: frozenset[Node]) -> list[ProjectionRegion]:
    """All such projections, in graph order; `static`: the placeholders that are parameters."""
    found = (zero_region(node, static) for node in calls(graph))
    return [region for region in found if region is not None]


def zero_region(node: Node, static: frozenset[Node]) -> ProjectionRegion | None:
    """The region that ends in a projection; None where its input has no natural zeros."""
    region = projection_region(node, static)
    found = [] if region is None else zero_parts(region)
    if region is None or not found:
        return None
    density, zero = min(found, key=lambda one: one[0])
    region = replace(region, zero=zero, density=density)
    behind = routed(region, static)
    if isinstance(zero, Input) and behind is not None and len(behind.factors) > 1:
        return behind
    return gated(region, static) or behind or region


def zero_parts(region: ProjectionRegion) -> list[tuple[float, Expression]]:
    """(density, part) for each part that is zero in many places, and the whole with it.

    The density is that of one row: the share of entries that are expected not to be zero.
    """
    found: list[tuple[float, Expression]] = [
        (region.density, part) for part in natural_zeros(region.expression)
    ]
    for part in dict.fromkeys(parts(region.expression)):
        if not isinstance(part, Input):
            continue
        facts = [fact for fact in frequent(region.inputs[part.index]) if fact.value == 0]
        if facts and (part == region.expression or is_zero_where(region.expression, [part])):
            found.append((facts[0].density, part))
    return found


def natural_zeros(expression: Expression) -> Iterator[Expression]:
    """Parts that are zero on intervals, and with them the whole expression."""
    for part in dict.fromkeys(parts(expression)):
        if not isinstance(part, Call) or not is_zero_on_interval(part):
            continue
        if part == expression or is_zero_where(expression, [part]):
            yield part
