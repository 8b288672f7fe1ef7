"""natural_zeros: weights that meet an activation's own zeros are not read.

    before   y[rows, n] = relu(z)[rows, k] @ W^T              all of W
    after    y = sum over k with relu(z)_k != 0 of relu(z)_k W^T[k]

    gated    y = (relu(g) * (x @ U^T)) @ W^T              rows of U and of W^T where relu(g) != 0

Exact: what is left out is a finite number times zero. (An infinity or NaN among weights that are
not read is not seen.) For few rows alone: the union of their lists is soon everything.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from tokenpass.edits import Rejection
from tokenpass.graph.projections import ProjectionRegion, projections
from tokenpass.graph.zeros import zero_regions
from tokenpass.passes.activation_sparsity.sparse_calls import (
    MOST_DENSITY,
    MOST_ROWS,
    Listing,
    replacement,
    unsound,
)
from tokenpass.passes.base import RegionContext, RegionPass
from tokenpass.rewrite.replacing import Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.statistics.stored import weight_fingerprint
from tokenpass.tracing import source_line

PRIOR_DENSITY = 0.5
"""Share of entries that are not zero where nothing is known: a symmetric value before a relu.

Trained models have far fewer; the planner must not count on it.
"""


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
            reason, name = unsound(region, context, most_rows()), names[region.down]
            if reason is None:
                share = active(region, name, context)
                found.append(replaced(region, name, share))
                continue
            code, because, hint = reason
            refused.append(Rejection(code, name, because, hint, source_line(region.down)))
        return tuple(found), tuple(refused)


def active(region: ProjectionRegion, site: str, context: RegionContext) -> float:
    """Share of a row's entries that are not zero: as calibrated, else the prior."""
    if context.calibration is None:
        return PRIOR_DENSITY
    known = context.calibration.find(site, weight_fingerprint(context.weights[region.weight]))
    if known is None:
        return PRIOR_DENSITY
    histogram = known.magnitude if region.up is None or known.gate is None else known.gate
    return 1 - float(histogram.share_below(torch.zeros(1)).mean())


def union(share: float, rows: int) -> float:
    """Expected share of entries that are not zero in every one of some rows."""
    return 1 - (1 - share) ** rows


def most_rows() -> int:
    """How many rows still gain, by the prior."""
    return max(n for n in range(1, MOST_ROWS + 1) if union(PRIOR_DENSITY, n) <= MOST_DENSITY)


def replaced(region: ProjectionRegion, site: str, share: float) -> Replacement:
    """The region by our operators, its zeros left out."""
    policy = "glu_neuron" if region.up is not None else "sparse_linear"
    listing = Listing(union(share, int(hinted(region.rows))))
    return replacement(region, site, policy, str(region.entries), listing)
