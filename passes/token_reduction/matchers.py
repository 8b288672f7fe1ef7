"""Matchers: which token joins which. Tokens at even places may join tokens at odd places."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tokenpass.ops.bipartite_match import bipartite_match
from tokenpass.shapes import Bool, Float


def head_cosine(
    keys: Float[torch.Tensor, "batch heads tokens width"],
    blocked: Bool[torch.Tensor, "#batch tokens"] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `tome`, by the mean over heads of the heads' own cosines.

    Unit keys of all heads side by side have that mean as their dot product. Averaging keys over
    heads first, as ToMe does, loses much where heads are narrow: docs/decisions/0005-planner.md.
    """
    unit = torch.nn.functional.normalize(keys.float(), dim=-1)
    return match(unit.transpose(1, 2).flatten(2), blocked)


def tome(
    keys: Float[torch.Tensor, "batch heads tokens width"],
    blocked: Bool[torch.Tensor, "#batch tokens"] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best partner of every even token by the cosine of keys (mean over heads), and its score.

    Blocked tokens neither join nor are joined. ToMe (Bolya et al., 2023), section 3.
    """
    return match(keys.float().mean(1), blocked)


def match(
    metric: Float[torch.Tensor, "batch tokens width"],
    blocked: Bool[torch.Tensor, "#batch tokens"] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and partners of even tokens among the odd ones that are not blocked."""
    if blocked is None:
        return bipartite_match(metric, None, None)
    rows = blocked.expand(metric.shape[0], -1)
    return bipartite_match(metric, rows[:, 0::2], rows[:, 1::2])


MATCHERS: tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], ...] = (head_cosine, tome)
