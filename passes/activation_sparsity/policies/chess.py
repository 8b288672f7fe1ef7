"""CHESS: gates weighted by the factor beside them (He et al., "CHESS", 2024)."""

from __future__ import annotations

from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.level import inverse, scale_for
from tokenpass.shapes import Float
from tokenpass.statistics.histogram import Histogram


def chess(gate: Histogram, up: Histogram, sparsity: float) -> Float[Tensor, " entries"]:
    """t / E|up_i|, with t below which the share `sparsity` of all |act(gate)_i| E|up_i| lies."""
    return scale_for(gate, inverse(up.mean().float()), sparsity)
