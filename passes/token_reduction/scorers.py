"""Scorers: one number for each token, higher means keep. The parameters name the signals read.

Signals: `keys` [batch, heads, tokens, width] of the attention just before, `attention_row` [batch,
heads, tokens] (the row of the position that the outputs read), `position` [batch, tokens] in the
full stream, `count` (tokens to keep), `seed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tokenpass.shapes import Float, Int


def attention_row(
    attention_row: Float[torch.Tensor, "batch heads tokens"],
) -> Float[torch.Tensor, "batch tokens"]:
    """Mean over heads of the attention that the class token (or the last one) pays to each token.

    EViT (Liang et al., 2022) for class tokens, FastV (Chen et al., 2024) for the last token.
    """
    return attention_row.float().mean(1)


def key_norm(
    keys: Float[torch.Tensor, "batch heads tokens width"],
) -> Float[torch.Tensor, "batch tokens"]:
    """Minus the L2 norm of the keys, mean over heads: keys of low norm draw attention.

    Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", 2024.
    """
    return -keys.float().norm(dim=-1).mean(1)


def uniform(
    position: Int[torch.Tensor, "batch tokens"], count: Any
) -> Float[torch.Tensor, "batch tokens"]:
    """One for `count` tokens at even distances, zero for the others: a control.

    Token i is kept where `floor(i * count / tokens)` rises.
    """
    tokens = position.shape[1]
    place = torch.arange(tokens, device=position.device)
    rises = (place + 1) * count // tokens > place * count // tokens
    return rises.to(torch.float32).expand(position.shape)


def random(
    position: Int[torch.Tensor, "batch tokens"], seed: int
) -> Float[torch.Tensor, "batch tokens"]:
    """A fixed pseudo-random number for each position and seed: a control.

    A multiplicative hash with xor shifts in 31 bits, so that it is the same on every device.
    """
    mask = 0x7FFFFFFF
    value = (position * 1103515245 + 12345 + 2654435 * (seed + 1)) & mask
    for shift, factor in ((15, 73244475), (13, 73244475)):
        value = ((value ^ (value >> shift)) * factor) & mask
    value = value ^ (value >> 16)
    return value.to(torch.float32) / mask


SCORERS: tuple[Callable[..., torch.Tensor], ...] = (attention_row, key_norm, uniform, random)
