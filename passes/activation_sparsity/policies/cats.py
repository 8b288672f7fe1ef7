"""CATS: neurons whose gate is small (Lee et al., "CATS: contextually-aware thresholding", 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.level import scale_for
from tokenpass.shapes import Float
from tokenpass.statistics.histogram import Histogram


def cats(gate: Histogram, sparsity: float) -> Float[Tensor, " 1"]:
    """The threshold below which the share `sparsity` of all |act(gate)| lies."""
    return scale_for(gate, torch.ones(1), sparsity)
