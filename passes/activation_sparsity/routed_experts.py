"""routed_experts: of experts that are all computed, those without a weight are not read.

    before   y[t] = sum over e of r[t, e] D[e] (silu(G[e] x[t]) * (U[e] x[t]))        all of them
    after    the same over the experts e with r[t, e] != 0 in any row t

All rows of the experts' weights form one matrix, and the router says which of them are needed: the
list is that of a projection behind a router. A weight is applied before the last product instead
of behind it, which is the same in real arithmetic.
"""

from __future__ import annotations

import math
import operator
from typing import ClassVar

import torch
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.experts import ExpertFactor, ExpertRegion, expert_regions
from tokenpass.ops.pointwise import Y
from tokenpass.passes.activation_sparsity.sparse_calls import most_rows, put_in, union
from tokenpass.passes.base import Reason, RegionContext, RegionPass
from tokenpass.passes.projection_tail import DTYPES
from tokenpass.rewrite.replacing import Calls, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.tracing import fake_value, module_path, source_line

aten = torch.ops.aten


class RoutedExperts(RegionPass):
    """Weighted sums over experts whose weights are stacked."""

    name: ClassVar[str] = "routed_experts"

    def replacements(
        self, context: RegionContext
    ) -> tuple[tuple[Replacement, ...], tuple[Rejection, ...]]:
        found: list[Replacement] = []
        refused: list[Rejection] = []
        for region in expert_regions(context.module.graph, context.static):
            reason, name = unsound(region, context), site(region.last)
            if reason is None:
                found.append(replacement(region, name))
                continue
            code, because, hint = reason
            refused.append(Rejection(code, name, because, hint, source_line(region.last)))
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
    for node in {region.end, region.tokens, *region.nodes, *region.router, *stacks}:
        if node in context.written:
            line = source_line(context.written[node]) or context.written[node].name
            return "mutated_alias", f"{node.name} is written to in place by {line}", ""
    if not bool(region.rows <= most_rows(region.density)):
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
            elif (
                fake_value(user) is None
                or user.target
                not in (
                    aten.to.dtype,
                    aten._to_copy.default,
                )
                or fake_value(user).dtype != wanted
            ):
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
    return union(region.density, int(hinted(region.rows)))


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
    y = calls.call(ours.sparse_input_gemv.default, index, kept, count, down, [], "y", share)
    wanted = fake_value(region.end).dtype
    return y if fake_value(y).dtype == wanted else calls.call(aten.to.dtype, y, wanted)


def neurons(
    calls: Calls,
    factor: ExpertFactor,
    x: Node,
    listed: tuple[Node, Node],
    sizes: tuple[int, float],
) -> Node:
    """`[rows, experts * size]` in the list's order: a function of x times listed rows of a weight.

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
    """`[rows, experts]`, float32: what each expert's result is multiplied with."""
    weight, *others = (
        calls.call(aten.reshape.default, calls[one], [region.experts, -1]) for one in region.router
    )
    for other in others:
        weight = calls.call(aten.mul.Tensor, weight, other)
    weight = calls.call(aten.to.dtype, weight, torch.float32)
    return calls.call(aten.transpose.int, weight, 0, 1)
