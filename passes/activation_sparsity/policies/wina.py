"""WINA: magnitudes weighted by what they multiply (Chen et al., "WINA", 2025)."""

from __future__ import annotations

from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.level import inverse, scale_for
from tokenpass.shapes import Float
from tokenpass.statistics.histogram import Histogram


def wina(
    magnitude: Histogram, column_norms: Float[Tensor, " entries"], sparsity: float
) -> Float[Tensor, " entries"]:
    """t / c_k, with t below which the share `sparsity` of all |x_k| c_k lies, c the column norms.

    With uncorrelated entries, what is left out is then the least possible output energy.
    """
    return scale_for(magnitude, inverse(column_norms), sparsity)
