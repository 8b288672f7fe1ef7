"""Core neurons: a fixed set, those active most often (Wang et al., "CoreInfer", 2024).

The paper counts over the tokens of one prompt; here the calibration's tokens are counted, so that
the set is the same for every prompt and nothing has to be remembered between calls.
"""

from __future__ import annotations

from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.level import keep_alone
from tokenpass.shapes import Float, Int


def core_neurons(core: Int[Tensor, " entries"], sparsity: float) -> Float[Tensor, " entries"]:
    """Below every value for the share 1 - `sparsity` that was counted most, infinite for the rest.

    Equal counts: the lower entry stays.
    """
    entries = core.shape[0]
    kept = max(1, round((1 - sparsity) * entries))
    return keep_alone(core.argsort(descending=True, stable=True)[:kept], entries)
