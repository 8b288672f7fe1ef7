"""What all families share: sizes, weights that matter, and inputs of a call.

Tiny random models, in float64 so that near ties do not matter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Example = tuple[nn.Module, dict[str, Any]]

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 3, 61
TEXT = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
TEXT |= {"intermediate_size": 48, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
VISION = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
VISION |= {"intermediate_size": 48, "image_size": 20, "patch_size": 4}


def ready(model: nn.Module, scale: float = 3.0) -> nn.Module:
    """In float64 and eval mode, with larger weights, so that layers matter."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def words(batch: int = 2, length: int = 20, lowest: int = 3) -> Tensor:
    """Random token ids."""
    return torch.randint(lowest, VOCABULARY, (batch, length))


def pictures(batch: int = 2, size: int = 20) -> Tensor:
    """Random pixels."""
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


def right_padded(batch: int = 2, length: int = 20, pads: int = 5) -> Tensor:
    """A mask whose later samples have padding at the end."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:, length - pads :] = 0
    return mask
