"""Top-k: each row keeps its largest entries (Li et al., "The lazy neuron phenomenon", 2023)."""

from __future__ import annotations

from torch import Tensor

from tokenpass.shapes import Float


def top_k(values: Float[Tensor, "rows entries"], sparsity: float) -> Float[Tensor, " 1"]:
    """The magnitude above which each row has the share 1 - `sparsity` of its entries or more.

    The least of all rows, so that every row keeps its own; computed in each call, and nothing needs
    to be calibrated.
    """
    dropped = max(1, round(sparsity * values.shape[-1]))
    smallest = values.abs().float().kthvalue(dropped, dim=-1).values
    return smallest.amin().reshape(1)
