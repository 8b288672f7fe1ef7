"""Which entries of a projection's input count, carried out by zeros at full size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenpass.ops.pointwise import evaluate, parse
from tokenpass.reference.facts import MaskFacts


def masked_entries(value: Tensor, mask: MaskFacts, inputs: Sequence[Tensor]) -> Tensor:
    """A projection's input `[.., entries]` with the entries that do not count set to 0."""
    flat = value.reshape(-1, value.shape[-1])
    told = flat
    if mask.gate:
        parts = [one.reshape(-1, one.shape[-1] if one.dim() else 1) for one in inputs]
        told = evaluate(parse(mask.gate), parts).expand(flat.shape)
    size = told.float().abs()
    bound = mask.threshold
    if bound is None:
        dropped = max(1, round(mask.share * flat.shape[-1]))
        bound = size.sort(-1).values[:, dropped - 1 : dropped]
        bound = bound if mask.each_row else bound.min()
    bound = bound.to(size.device)
    left_out = size <= bound
    return torch.where(left_out, torch.zeros_like(flat), flat).reshape(value.shape)
