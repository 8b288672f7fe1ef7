"""Matchers: which token joins which. Tokens at even places may join tokens at odd places."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tokenpass.ops.bipartite_match import bipartite_match
from tokenpass.shapes import Bool, Float, Int

Match = tuple[Float[torch.Tensor, "batch sources"], Int[torch.Tensor, "batch sources"]]


def tome(
    keys: Float[torch.Tensor, "batch heads tokens width"],
    blocked: Bool[torch.Tensor, "#batch tokens"] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best partner of every even token by the cosine of keys (mean over heads), and its score.

    Blocked tokens neither join nor are joined. ToMe (Bolya et al., 2023), section 3.
    """
    metric = keys.float().mean(1)
    if blocked is None:
        return bipartite_match(metric, None, None)
    rows = blocked.expand(metric.shape[0], -1)
    return bipartite_match(metric, rows[:, 0::2], rows[:, 1::2])


MATCHERS: tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], ...] = (tome,)
