"""Selectors: from scores to kept tokens, in order; ties go to the lower index."""

from __future__ import annotations

from typing import Any

import torch

from tokenpass.shapes import Bool, Float, Int


def keep_best(
    score: Float[torch.Tensor, "#batch tokens"],
    count: Any,
    protected: Bool[torch.Tensor, "#batch tokens"] | None,
    padding: Bool[torch.Tensor, "#batch tokens"] | None,
) -> Int[torch.Tensor, "#batch count"]:
    """Places of the `count` best tokens, rising; protected ones first, padding last."""
    if padding is not None:
        score = torch.where(padding, float("-inf"), score)
    if protected is not None:
        score = torch.where(protected, float("inf"), score)
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    return torch.sort(order.narrow(1, 0, count), dim=1).values
