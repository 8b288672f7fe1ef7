"""Experts read in place: no copies of the chosen ones' weights, none of those that do not count.

    before   y[t] = sum over j of w[t, j] D[ids[t, j]] (silu(G[ids[t, j]] x[t]) * (U[..] x[t]))
    after    r[t, ids[t, j]] += w[t, j];  only experts with r != 0 are read, where they lie

    also     y[t] = sum over e of r[t, e] D[e] silu(U[e] x[t])            of all experts

All rows of the experts' weights form one matrix, and the router says which of them are needed: the
list is that of a projection behind a router. A weight is applied before the last product instead
of behind it, and an expert that was chosen twice is computed once, with the sum of its weights.
"""

from __future__ import annotations

import math
import operator
from typing import ClassVar

import torch
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.experts import (
    ExpertFactor,
    ExpertRegion,
    expert_regions,
    looked_up_products,
)
from tokenpass.ops.pointwise import Y
from tokenpass.passes.activation_sparsity.natural_zeros import DTYPES, density, fits, put_in
from tokenpass.passes.base import Reason, RegionContext, RegionPass
from tokenpass.rewrite.replacing import Calls, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.tracing import fake_value, module_path, source_line

aten = torch.ops.aten


class RoutedExperts(RegionPass):
    """Weighted sums over experts, chosen or not, whose weights are stacked."""

    name: ClassVar[str] = "routed_experts"

    def replacements(
        self, context: RegionContext
    ) -> tuple[tuple[Replacement, ...], tuple[Rejection, ...]]:
        found: list[Replacement] = []
        refused: list[Rejection] = []
        graph, covered = context.module.graph, set[Node]()
        for region in expert_regions(graph, context.static):
            covered |= region.nodes
            reason, name = unsound(region, context), site(region.last)
            if reason is None:
                found.append(replacement(region, name))
                continue
            code, because, hint = reason
            refused.append(Rejection(code, name, because, hint, source_line(region.last)))
        for one in looked_up_products(graph, context.static):
            if one.node not in covered:
                because = f"{one.node.name} multiplies copies of weights, and what follows is no sum"
                line = source_line(one.node)
                refused.append(Rejection("experts_copied", site(one.node), because, "", line))
        return tuple(found), tuple(refused)


def site(node: Node) -> str:
    """The name in plans: that of the module."""
    return f"{module_path(node) or node.name}:experts"


def unsound(region: ExpertRegion, context: RegionContext) -> Reason:
    """Why a sum is computed as it stands; None if it need not be."""
    stacks = [region.down, *(factor.weight for factor in region.factors)]
    types = {fake_value(one).dtype for one in (*stacks, region.tokens)}
    if len({fake_value(one).dtype for one in stacks}) > 1 or not types <= set(DTYPES):
        return "region_dtype", f"the weights are {types}", "float32, bfloat16 or float16"
    if fake_value(region.end).dtype != fake_value(region.down).dtype and not narrowed(region):
        return "region_dtype", "the sum is wider than the weights", "weights of the sum's type"
    given = [one for one in (region.ids, region.tokens, *region.router) if one is not None]
    for node in {region.end, *region.nodes, *stacks, *given}:
        if node in context.written:
            line = source_line(context.written[node]) or context.written[node].name
            return "mutated_alias", f"{node.name} is written to in place by {line}", ""
    if not fits(region.rows, region.density):
        because = f"{hinted(region.rows)} rows leave hardly an expert that none of them needs"
        return "too_many_rows", because, "nothing: a dense product is as fast"
    return None


def narrowed(region: ExpertRegion) -> bool:
    """Whether all that read the sum round it to the weights' type first."""
    wanted, shapes = fake_value(region.down).dtype, (aten.view.default, aten.reshape.default)
    queue = [region.end]
    for node in queue:
        for user in node.users:
            if user.target in shapes:
                queue.append(user)
            elif fake_value(user) is None or user.target not in (
                aten.to.dtype,
                aten._to_copy.default,
            ):
                return False
            elif fake_value(user).dtype != wanted:
                return False
    return True


def replacement(region: ExpertRegion, name: str) -> Replacement:
    """The sum by our operators."""
    weight, share = fake_value(region.down), share_read(region)
    return Replacement(
        region.end,
        region.last,
        name,
        "sparse_output_gemv",
        f"{math.ceil(region.experts * share)}*{region.size}",
        lambda calls: computed(calls, region),
        ("mask_compact", "sparse_input_gemv", "sparse_output_gemv"),
        weight.numel() * weight.element_size(),
    )


def share_read(region: ExpertRegion) -> float:
    """Expected share of the experts that are read."""
    return density(int(hinted(region.rows)), region.density)


def computed(calls: Calls, region: ExpertRegion) -> Node:
    """The sum, from the list of the neurons of experts with a weight."""
    ours, share, size = torch.ops.tokenpass, share_read(region), region.size
    spread = calls.call(aten.unsqueeze.default, router(calls, region), -1)
    spread = calls.call(aten.expand.default, spread, [-1, -1, size])
    spread = calls.call(aten.reshape.default, spread, [-1, region.experts * size])
    found = calls.call(ours.mask_compact.default, [spread], "a0", None)
    index, kept, count = (calls.call(operator.getitem, found, at) for at in range(3))
    width = fake_value(region.factors[0].weight).shape[2]
    x = calls.call(aten.reshape.default, calls[region.tokens], [-1, width])
    for factor in region.factors:
        h = neurons(calls, factor, x, (index, count), (size, share))
        kept = calls.call(aten.mul.Tensor, kept, h)
    down = calls[region.down]
    y = calls.call(
        ours.sparse_input_gemv.default, index, kept, count, down, [], "y", share
    )
    wanted = fake_value(region.end).dtype
    return y if fake_value(y).dtype == wanted else calls.call(aten.to.dtype, y, wanted)


def neurons(
    calls: Calls,
    factor: ExpertFactor,
    x: Node,
    listed: tuple[Node, Node],
    sizes: tuple[int, float],
) -> Node:
    """`[rows, experts * size]`, in the list's order: a function of listed rows of a weight, times x.

    Where an expert's weight holds more rows (gate and up in one), entry i of expert e is row
    e height + start + i of all.
    """
    (index, count), (size, share) = listed, sizes
    experts, height, width = fake_value(factor.weight).shape
    if height != size:
        skipped = calls.call(aten.floor_divide.default, index, size)
        skipped = calls.call(aten.mul.Tensor, skipped, height - size)
        index = calls.call(aten.add.Tensor, index, skipped)
        index = calls.call(aten.add.Tensor, index, factor.start)
        index = calls.call(aten.constant_pad_nd.default, index, [0, experts * (height - size)])
    matrix = calls.call(aten.view.default, calls[factor.weight], [experts * height, width])
    text = str(put_in(factor.expression, Y))
    made = calls.call(
        torch.ops.tokenpass.sparse_output_gemv.default,
        *(x, index, count, matrix, [], text, share * size / height),
    )
    return made if height == size else calls.call(aten.slice.Tensor, made, 1, 0, experts * size)


def router(calls: Calls, region: ExpertRegion) -> Node:
    """`[rows, experts]`, float32: what each expert's result is multiplied with, 0 where by nothing.

    An expert that was chosen twice has both weights: additions, not assignments.
    """
    weight = calls[region.router[0]]
    for other in region.router[1:]:
        weight = calls.call(aten.mul.Tensor, weight, calls[other])
    weight = calls.call(aten.to.dtype, weight, torch.float32)
    if region.ids is None:
        weight = calls.call(aten.squeeze.dim, weight, -1)
        return calls.call(aten.transpose.int, weight, 0, 1)
    weight = calls.call(aten.reshape.default, weight, [-1, region.chosen])
    ids = calls.call(aten.reshape.default, calls[region.ids], [-1, region.chosen])
    rows = fake_value(weight).shape[0]
    if not isinstance(rows, int):
        rows = calls.call(aten.sym_size.int, weight, 0)
    none = calls.call(aten.new_zeros.default, weight, [rows, region.experts])
    return calls.call(aten.scatter_add.default, none, 1, ids, weight)
