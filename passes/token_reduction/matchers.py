"""Matchers: which token joins which. Tokens at even places may join tokens at odd places."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tokenpass.ops.bipartite_match import bipartite_match
from tokenpass.shapes import Float, Int


def head_cosine(
    keys: Float[torch.Tensor, "batch heads tokens width"],
    sizes: Float[torch.Tensor, "batch tokens"] | None,
    protected: Int[torch.Tensor, "#batch places"] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `tome`, by the mean over heads of the heads' own cosines.

    Averaging keys over heads first, as ToMe does, loses much where heads are narrow:
    docs/decisions/0005-planner.md.
    """
    channels = keys.transpose(1, 2).flatten(2)
    return bipartite_match(channels, sizes, protected, keys.shape[1])


def tome(
    keys: Float[torch.Tensor, "batch heads tokens width"],
    sizes: Float[torch.Tensor, "batch tokens"] | None,
    protected: Int[torch.Tensor, "#batch places"] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best partner of every even token by the cosine of keys (mean over heads), and its score.

    Protected tokens and padding (size 0) neither join nor are joined. ToMe (Bolya et al., 2023),
    section 3.
    """
    return bipartite_match(keys.float().mean(1), sizes, protected)


MATCHERS: tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], ...] = (head_cosine, tome)
