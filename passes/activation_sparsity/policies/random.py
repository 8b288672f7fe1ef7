"""A fixed random set: the control that every policy must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.level import keep_alone
from tokenpass.shapes import Float


def random(entries: int, seed: int, sparsity: float) -> Float[Tensor, " entries"]:
    """Below every value for the share 1 - `sparsity` drawn at random, infinite for the rest."""
    order = torch.randperm(entries, generator=torch.Generator().manual_seed(seed))
    return keep_alone(order[: max(1, round((1 - sparsity) * entries))], entries)
