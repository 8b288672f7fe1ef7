"""Values scaled by a router: whatever else makes them need not be computed where it is zero.

    y = W (r * silu(U x))                    rows of U and of W^T where r = 0 are not read
    y = W (r * silu(G x) * (U x))            nor are those of G

r is any factor that is zero in many places (`zeros.zero_parts`), silu any function of one
projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from tokenpass.graph.pointwise_reader import inputs_of
from tokenpass.graph.projections import Factor, ProjectionRegion, factors, product, projected
from tokenpass.ops.pointwise import Expression, Input, is_zero_where, parts
from tokenpass.tracing import fake_value

aten = torch.ops.aten


def routed(region: ProjectionRegion, static: frozenset[Node]) -> ProjectionRegion | None:
    """The region as a gate times functions of projections; None if it is none.

    The gate is zero where `zero` is, the projections are needed nowhere else.
    """
    zero = region.zero
    if zero is None:
        return None
    rest: list[Expression] = []
    by_input: dict[int, list[Expression]] = {}
    for term in factors(region.expression):
        read = inputs_of(term)
        if len(read) == 1 and zero not in set(parts(term)):
            by_input.setdefault(next(iter(read)), []).append(term)
        else:
            rest.append(term)
    made: list[Factor] = []
    for at, terms in by_input.items():
        one = factor_of(region, at, terms, static)
        if one is None or any(at in inputs_of(term) for term in rest):
            rest += terms
        else:
            made.append(one)
    if not made or not rest:
        return None
    gate = product(rest)
    if gate != zero and not is_zero_where(gate, [zero]):
        return None
    return replace(region, gate=gate, factors=tuple(made))


def factor_of(
    region: ProjectionRegion, at: int, terms: Sequence[Expression], static: frozenset[Node]
) -> Factor | None:
    """The product of some factors as a function of one projection; None if it is of none."""
    node = region.inputs[at]
    part = None if node in region.blocked else projected(region, node, static)
    return None if part is None else Factor(product(terms), part)


def router_blocks(region: ProjectionRegion) -> tuple[int, int] | None:
    """(number, size) of the blocks of entries for each of which the zero has one value."""
    if not isinstance(region.zero, Input):
        return None
    node = region.inputs[region.zero.index]
    blocks = region.blocked.get(node)
    while node.target is aten.expand.default:
        (node,) = node.all_input_nodes[:1]
    shape = fake_value(node).shape
    repeated = bool(shape) and isinstance(shape[-1], int) and shape[-1] == 1
    return blocks if repeated else None
