"""TEAL: one magnitude for all entries (Liu et al., "Training-free activation sparsity", 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.level import scale_for
from tokenpass.shapes import Float
from tokenpass.statistics.histogram import Histogram


def teal(magnitude: Histogram, sparsity: float) -> Float[Tensor, " 1"]:
    """The threshold below which the share `sparsity` of all magnitudes lies.

    Counted on magnitudes: the paper's quantile of the values supposes that they are symmetric
    around 0, which what enters an MLP's last projection is not.
    """
    return scale_for(magnitude, torch.ones(1), sparsity)
