"""What leaving out entries of a projection's input does to its output, and to the model's.

    local^2 = sum_k E[x_k^2 ; |x_k| <= tau_k] c_k^2 / sum_k E[x_k^2] c_k^2        c: column norms

which supposes that entries are uncorrelated. For neurons listed by their gate, x_k^2 is g_k^2 times
E[u_k^2]. The error of the main output is the local one times the site's measured sensitivity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenpass.shapes import Float
from tokenpass.statistics.histogram import Histogram
from tokenpass.statistics.stored import SiteStatistics

PRIOR_SENSITIVITY = 0.15
"""Relative error of the main output for one of a projection's output, where none was measured.

The root mean square over the trained decoders (docs/decisions/0014-activation-sparsity.md); what
comes last has 1: its output is the main one.
"""


def local_error(
    magnitude: Histogram,
    weights: Float[Tensor, " entries"],
    threshold: Float[Tensor, "#entries"],
) -> float:
    """Relative L2 error of a projection's output; `weights`: what an entry's square counts."""
    lost = magnitude.energy_below(threshold).double() * weights.double()
    total = float((magnitude.energy().double() * weights.double()).sum())
    return math.sqrt(float(lost.sum()) / total) if total > 0 else 0.0


def measured_error(
    known: SiteStatistics,
    column_norms: Float[Tensor, " entries"],
    threshold: Float[Tensor, "#entries"],
    by_gate: bool,
) -> float:
    """Estimated relative L2 error of the main output, from a calibration."""
    squares = column_norms.square()
    if by_gate and known.gate is not None and known.up is not None and listed(threshold):
        local = local_error(known.gate, squares * known.up.energy(), threshold)
    else:
        local = local_error(known.magnitude, squares, threshold)
    return local * (PRIOR_SENSITIVITY if known.sensitivity is None else known.sensitivity)


def listed(threshold: Tensor) -> bool:
    """Whether entries are told apart by their magnitude, and not by their place alone."""
    return bool((threshold.isfinite() & (threshold >= 0)).any())


def prior_error(share: float, last: bool) -> float:
    """The same where nothing was calibrated: of normally distributed entries the smallest go.

    `last`: no projection comes behind it.
    """
    sensitivity = 1.0 if last else PRIOR_SENSITIVITY
    if share <= 0:
        return 0.0
    bound = math.sqrt(2) * float(torch.erfinv(torch.tensor(min(share, 1.0), dtype=torch.float64)))
    if not math.isfinite(bound):
        return sensitivity
    lost = share - bound * math.sqrt(2 / math.pi) * math.exp(-(bound**2) / 2)
    return sensitivity * math.sqrt(max(lost, 0.0))
