"""GRIFFIN: neurons that fire together for a whole prompt (Dong et al., "Prompt-prompted", 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.level import keep_most
from tokenpass.shapes import Float


def griffin(prompt: Float[Tensor, " entries"], sparsity: float) -> Float[Tensor, " entries"]:
    """Below every value for the share 1 - `sparsity` that the prompt used most, else infinite."""
    return keep_most(prompt, sparsity)


def relative_energy(values: Float[Tensor, "rows entries"]) -> Float[Tensor, " entries"]:
    """The sum over tokens of each entry's share of its token's energy, float32.

    Every token counts the same, however large its values are. The paper ranks by the root of it,
    which is the same order; sums of two calls add up. Values that are not finite count as 0.
    """
    x = values.detach().float()
    squares = torch.where(x.isfinite(), x, 0.0).square()
    return (squares / squares.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)).sum(0)
