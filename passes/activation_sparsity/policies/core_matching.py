"""CoreMatching: the neurons most often at a prompt's tokens' cores (Wang et al., 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.level import keep_most
from tokenpass.shapes import Float
from tokenpass.statistics.kept import CORE_SHARE


def core_matching(prompt: Float[Tensor, " entries"], sparsity: float) -> Float[Tensor, " entries"]:
    """Below every value for the share 1 - `sparsity` that was counted most, else infinite."""
    return keep_most(prompt, sparsity)


def core_counts(values: Float[Tensor, "rows entries"]) -> Float[Tensor, " entries"]:
    """How many tokens have each entry among the largest `CORE_SHARE` of their active ones, float32.

    Activity is a magnitude above 0, as in a calibration's `core`: the paper's positive values are
    the same behind a relu, and half of what matters behind a gate. Entries as large as the core's
    smallest belong to it. Counts of two calls add up. One sort of each row: for long prompts on a
    CPU it is felt, where `griffin` is not.
    """
    x = values.detach().float().abs()
    x = torch.where(x.isfinite(), x, 0.0)
    kept = ((x > 0).sum(1, keepdim=True) * CORE_SHARE).floor().long()
    least = x.sort(dim=1, descending=True).values.gather(1, (kept - 1).clamp_min(0))
    return ((x >= least) & (kept > 0)).sum(0).float()
