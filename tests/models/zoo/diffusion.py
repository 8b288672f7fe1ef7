"""Denoising transformers and UNets of `diffusers`."""

from __future__ import annotations

from typing import Any

import torch

from tests.models.zoo.common import Example, ready


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


LATENT = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 3}
LATENT |= {"num_attention_heads": 4, "attention_head_dim": 8}


def denoised(**given: Any) -> dict[str, Any]:
    """A call over two noisy latents of four channels."""
    return {"hidden_states": noise(2, 4, 8, 8), **given, "return_dict": False}


def dit() -> Example:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = DiTTransformer2DModel(**LATENT, num_embeds_ada_norm=10, norm_num_groups=4)
    call = denoised(timestep=torch.tensor([1, 5]), class_labels=torch.tensor([0, 3]))
    return ready(model, 1.5), call


def pixart() -> Example:
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        **LATENT,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=16,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    call = denoised(
        encoder_hidden_states=noise(2, 6, 16),
        timestep=torch.tensor([1, 5]),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )
    return ready(model, 1.5), call


def sd3() -> Example:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        **LATENT,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        out_channels=4,
        pos_embed_max_size=8,
    )
    call = denoised(
        encoder_hidden_states=noise(2, 6, 16),
        pooled_projections=noise(2, 24),
        timestep=torch.tensor([1.0, 5.0], dtype=torch.float64),
    )
    return ready(model, 1.5), call


def flux() -> Example:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    call = {
        "hidden_states": noise(2, 16, 4),
        "encoder_hidden_states": noise(2, 6, 32),
        "pooled_projections": noise(2, 32),
        "timestep": torch.tensor([0.3, 0.7], dtype=torch.float64),
        "img_ids": torch.randint(0, 4, (16, 3)).double(),
        "txt_ids": torch.zeros(6, 3, dtype=torch.float64),
        "return_dict": False,
    }
    return ready(model, 1.5), call


def unet() -> Example:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    call = {
        "sample": noise(1, 4, 16, 16),
        "timestep": torch.tensor(3),
        "encoder_hidden_states": noise(1, 6, 16),
        "return_dict": False,
    }
    return ready(model, 1.0), call


FAMILIES = (dit, pixart, sd3, flux, unet)
