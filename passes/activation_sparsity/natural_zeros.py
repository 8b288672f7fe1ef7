"""natural_zeros: weights that meet an activation's own zeros are not read.

    before   y[rows, n] = relu(z)[rows, k] @ W^T              all of W
    after    y = sum over k with relu(z)_k != 0 of relu(z)_k W^T[k]

    gated    y = (relu(g) * (x @ U^T)) @ W^T              rows of U and of W^T where relu(g) != 0

Exact: what is left out is a finite number times zero. (An infinity or NaN among weights that are
not read is not seen.) For few rows alone: the union of their lists is soon everything.
"""

from __future__ import annotations

import math
from typing import ClassVar

from tokenpass.edits import Rejection
from tokenpass.graph.projections import ProjectionRegion, projections
from tokenpass.graph.routers import router_blocks
from tokenpass.graph.zeros import zero_regions
from tokenpass.passes.activation_sparsity.sparse_calls import (
    Listing,
    most_rows,
    replacement,
    union,
    unsound,
)
from tokenpass.passes.base import RegionContext, RegionPass
from tokenpass.rewrite.replacing import Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.statistics.stored import weight_fingerprint
from tokenpass.tracing import source_line


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
            most = most_rows(region.density)
            reason, name = unsound(region, context, most), names[region.down]
            if reason is None:
                share = active(region, name, context)
                found.append(replaced(region, name, share))
                continue
            code, because, hint = reason
            refused.append(Rejection(code, name, because, hint, source_line(region.down)))
        return tuple(found), tuple(refused)


def active(region: ProjectionRegion, site: str, context: RegionContext) -> float:
    """Expected share of a row's entries that are not zero: calibrated, else read off the graph."""
    if context.calibration is None:
        return region.density
    known = context.calibration.find(site, weight_fingerprint(context.weights[region.weight]))
    if known is None:
        return region.density
    return 1 - known.zero_share(by_gate=region.up is not None)


def replaced(region: ProjectionRegion, site: str, share: float) -> Replacement:
    """The region by our operators, its zeros left out."""
    read = union(share, int(hinted(region.rows)))
    return replacement(region, site, None, level(region, read), Listing(read))


def level(region: ProjectionRegion, share: float) -> str:
    """The entries, or of a router's blocks `read*size`: those that are expected to be read."""
    blocks = router_blocks(region)
    if blocks is None:
        return str(region.entries)
    number, size = blocks
    return f"{math.ceil(number * share)}*{size}"
