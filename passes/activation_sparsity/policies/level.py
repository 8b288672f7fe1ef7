"""The one equation that calibrated thresholds solve: how large for so many entries to lie below."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.shapes import Float
from tokenpass.statistics.histogram import Histogram

STEPS = 26
"""Halvings of the exponent's interval: to a millionth."""

LOWEST, HIGHEST = -40.0, 40.0
"""Exponents of two between which a threshold is looked for."""


def scale_for(
    histogram: Histogram, pattern: Float[Tensor, "#entries"], sparsity: float
) -> Float[Tensor, "#entries"]:
    """t * pattern, with the t for which the share `sparsity` of all magnitudes lies at or below.

    Entries whose pattern is infinite always do. Zero where more than that is 0 by itself.
    """
    if pattern.numel() == 1:
        histogram = histogram.pooled()

    shares = histogram.shares()

    def below(threshold: Tensor) -> float:
        return float(shares(threshold).mean())

    if below(torch.zeros_like(pattern)) >= sparsity:
        return torch.zeros_like(pattern)
    low, high = LOWEST, HIGHEST
    for _ in range(STEPS):
        middle = (low + high) / 2
        if below(pattern * 2.0**middle) < sparsity:
            low = middle
        else:
            high = middle
    return pattern * 2.0**high


def inverse(scale: Float[Tensor, " entries"]) -> Float[Tensor, " entries"]:
    """1 / scale; infinite where it is 0: what is multiplied by nothing may go first."""
    return torch.where(scale > 0, 1 / scale, torch.inf)


def keep_alone(kept: Tensor, entries: int) -> Float[Tensor, " entries"]:
    """A threshold that every kept entry passes, 0 included, and no other one."""
    threshold = torch.full((entries,), torch.inf, device=kept.device)
    threshold[kept] = -1.0
    return threshold


def keep_most(score: Float[Tensor, " entries"], sparsity: float) -> Float[Tensor, " entries"]:
    """Such a threshold for the share 1 - `sparsity` of largest scores, one at least.

    Equal scores: the lower entry stays.
    """
    entries = score.shape[0]
    kept = max(1, round((1 - sparsity) * entries))
    return keep_alone(score.argsort(descending=True, stable=True)[:kept], entries)
