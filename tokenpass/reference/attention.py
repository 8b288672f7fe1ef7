"""Attention over groups, at full length: every token asks and answers as its representative.

A group of s equal tokens is s equal keys, so a softmax over all tokens weighs it by its size: the
log size of proportional attention is never written down.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenpass.reference.groups import Groups, rows


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    asking: Groups | None,
    answering: Groups | None,
) -> Tensor:
    """`softmax(q k^T scale + mask) v` where `asking` and `answering` group queries and keys."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    scores = query @ key.transpose(-1, -2)
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = grouped_softmax(scores, asking, answering)
    return weights @ grouped_values(value, answering)


def grouped_scores(scores: Tensor, asking: Groups | None, answering: Groups | None) -> Tensor:
    """Scores `[batch, heads, queries, keys]` of the representatives; who left answers nobody."""
    if asking is not None:
        scores = rows(scores, asking.stands, -2)
    if answering is None:
        return scores
    scores = rows(scores, answering.stands, -1)
    hidden = ~answering.counted[:, None, :]
    if asking is answering:  # who left still sees itself, so that nothing becomes NaN
        alone = torch.diag_embed(~answering.present)
        hidden = hidden & ~alone
        scores = scores.masked_fill(spread(alone, scores), 0.0)
    return scores.masked_fill(spread(hidden, scores), -math.inf)


def grouped_softmax(scores: Tensor, asking: Groups | None, answering: Groups | None) -> Tensor:
    """Softmax over keys of grouped scores; a query that may see nothing gets zeros."""
    return torch.softmax(grouped_scores(scores, asking, answering), -1).nan_to_num(0.0)


def grouped_values(value: Tensor, answering: Groups | None) -> Tensor:
    """Values of the representatives."""
    return value if answering is None else rows(value, answering.stands, -2)


def spread(mask: Tensor, scores: Tensor) -> Tensor:
    """`[batch, queries or 1, keys]` shaped to the scores, whose heads may lie in the batch."""
    if scores.dim() == mask.dim():
        return mask.repeat_interleave(scores.shape[0] // mask.shape[0], 0)
    return mask[:, None]


LEFT_NOTHING = -5e3
"""A score this far below the others is exactly nothing behind a softmax."""


def hidden_keys(mask: Tensor, hides: bool) -> Tensor:
    """`[batch or 1, keys]`: keys that a mask hides from every query of every head."""
    if mask.dtype != torch.bool:
        mask, hides = mask > LEFT_NOTHING, False
    seen = ~mask if hides else mask
    while seen.dim() < 4:
        seen = seen[None]
    return ~seen.any(-2).any(1)
