"""Vision transformers of `transformers`."""

from __future__ import annotations

from typing import Any

import torch

from tests.models.zoo.common import (
    HEADS,
    LAYERS,
    TEXT,
    VISION,
    WIDTH,
    Example,
    pictures,
    ready,
    words,
)


def vision_model(model: type, config: type, **extra: Any) -> Example:
    """A vision transformer in the common sizes."""
    return ready(model(config(**{**VISION, **extra}))), {"pixel_values": pictures()}


def vit() -> Example:
    from transformers import ViTConfig, ViTForImageClassification

    return vision_model(ViTForImageClassification, ViTConfig, num_labels=5)


def deit() -> Example:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    return vision_model(DeiTForImageClassificationWithTeacher, DeiTConfig, num_labels=5)


def dinov2() -> Example:
    from transformers import Dinov2Config, Dinov2Model

    return vision_model(Dinov2Model, Dinov2Config, mlp_ratio=2)


def beit_pooled() -> Example:
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(**VISION, num_labels=5, use_mean_pooling=True)
    config.use_shared_relative_position_bias = True
    return ready(BeitForImageClassification(config)), {"pixel_values": pictures()}


def clip_vision() -> Example:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return vision_model(CLIPVisionModelWithProjection, CLIPVisionConfig, projection_dim=24)


def siglip() -> Example:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return vision_model(SiglipVisionModel, SiglipVisionConfig)


def vit_features() -> Example:
    from transformers import ViTConfig, ViTModel

    return vision_model(ViTModel, ViTConfig)


def dinov2_registers() -> Example:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    extra = {"mlp_ratio": 2, "num_register_tokens": 3, "num_labels": 5}
    return vision_model(
        Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig, **extra
    )


def dinov3() -> Example:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return vision_model(DINOv3ViTModel, DINOv3ViTConfig, num_register_tokens=2)


def beit() -> Example:
    from transformers import BeitConfig, BeitModel

    return vision_model(BeitModel, BeitConfig, use_relative_position_bias=True)


def data2vec_vision() -> Example:
    from transformers import Data2VecVisionConfig, Data2VecVisionModel

    return vision_model(Data2VecVisionModel, Data2VecVisionConfig)


def vit_mae_encoder() -> Example:
    from transformers import ViTMAEConfig, ViTMAEModel

    model, call = vision_model(ViTMAEModel, ViTMAEConfig, mask_ratio=0.0)
    noise = torch.rand(2, 25, dtype=torch.float64)
    return model, {**call, "noise": noise}


def vit_msn() -> Example:
    from transformers import ViTMSNConfig, ViTMSNForImageClassification

    return vision_model(ViTMSNForImageClassification, ViTMSNConfig, num_labels=5)


def ijepa() -> Example:
    from transformers import IJepaConfig, IJepaForImageClassification

    return vision_model(IJepaForImageClassification, IJepaConfig, num_labels=5)


def yolos() -> Example:
    from transformers import YolosConfig, YolosModel

    extra = {"image_size": [20, 20], "num_detection_tokens": 3}
    return vision_model(YolosModel, YolosConfig, **extra)


def blip_vision() -> Example:
    from transformers import BlipVisionConfig, BlipVisionModel

    return vision_model(BlipVisionModel, BlipVisionConfig)


def siglip2_like_text() -> Example:
    from transformers import SiglipTextConfig, SiglipTextModel

    config = SiglipTextConfig(**TEXT)
    return ready(SiglipTextModel(config)), {"input_ids": words()}


def windowed_model(model: type, config: type) -> Example:
    """Attention within windows of four by four patches, in two stages."""
    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "window_size": 4}
    return ready(model(config(**sizes, depths=[2, 2], num_heads=[2, 4]))), {
        "pixel_values": pictures(size=16)
    }


def swin() -> Example:
    from transformers import SwinConfig, SwinModel

    return windowed_model(SwinModel, SwinConfig)


def swinv2() -> Example:
    from transformers import Swinv2Config, Swinv2Model

    return windowed_model(Swinv2Model, Swinv2Config)


def pvt() -> Example:
    from transformers import PvtConfig, PvtForImageClassification

    config = PvtConfig(
        image_size=32,
        depths=[1, 1],
        hidden_sizes=[16, 32],
        num_encoder_blocks=2,
        sequence_reduction_ratios=[2, 1],
        num_attention_heads=[2, 4],
        patch_sizes=[4, 2],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        num_labels=5,
    )
    return ready(PvtForImageClassification(config)), {"pixel_values": pictures(size=32)}


def segformer() -> Example:
    from transformers import SegformerConfig, SegformerForImageClassification

    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        num_labels=5,
    )
    return ready(SegformerForImageClassification(config)), {"pixel_values": pictures(size=32)}


def convnext() -> Example:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5)
    return ready(ConvNextForImageClassification(config)), {"pixel_values": pictures(size=32)}


def audio_spectrogram() -> Example:
    from transformers import ASTConfig, ASTForAudioClassification

    sizes = {name: value for name, value in VISION.items() if name != "image_size"}
    config = ASTConfig(**sizes, max_length=24, num_mel_bins=16, num_labels=5)
    sound = torch.randn(2, 24, 16, dtype=torch.float64)
    return ready(ASTForAudioClassification(config)), {"input_values": sound}


def sound_model(model: type, config: type) -> Example:
    """A speech encoder: convolutions over the raw sound, then a transformer."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"intermediate_size": 48, "num_feat_extract_layers": 2}
    sizes |= {"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3]}
    sizes |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    sound = torch.randn(2, 400, dtype=torch.float64)
    return ready(model(config(**sizes))), {"input_values": sound}


def wav2vec2() -> Example:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return sound_model(Wav2Vec2Model, Wav2Vec2Config)


def hubert() -> Example:
    from transformers import HubertConfig, HubertModel

    return sound_model(HubertModel, HubertConfig)


def videomae() -> Example:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    extra = {"num_frames": 4, "tubelet_size": 2, "num_labels": 5}
    config = VideoMAEConfig(**VISION, **extra)
    film = torch.randn(2, 4, 3, 20, 20, dtype=torch.float64)
    return ready(VideoMAEForVideoClassification(config)), {"pixel_values": film}


def vivit() -> Example:
    from transformers import VivitConfig, VivitForVideoClassification

    sizes = {name: value for name, value in VISION.items() if name != "patch_size"}
    config = VivitConfig(**sizes, num_frames=4, tubelet_size=[2, 4, 4], num_labels=5)
    film = torch.randn(2, 4, 3, 20, 20, dtype=torch.float64)
    return ready(VivitForVideoClassification(config)), {"pixel_values": film}


def clip() -> Example:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={**TEXT, "eos_token_id": 2, "bos_token_id": 1, "projection_dim": 24},
        vision_config={**VISION, "projection_dim": 24},
        projection_dim=24,
    )
    ids = words()
    ids[0, 12] = ids[1, 17] = 2
    return ready(CLIPModel(config)), {"input_ids": ids, "pixel_values": pictures()}


def vilt() -> Example:
    from transformers import ViltConfig, ViltModel

    config = ViltConfig(**{**TEXT, **VISION}, modality_type_vocab_size=2, max_image_length=-1)
    return ready(ViltModel(config)), {"input_ids": words(), "pixel_values": pictures()}


def depth_anything_backbone() -> Example:
    from transformers import Dinov2Backbone, Dinov2Config

    config = Dinov2Config(**VISION, mlp_ratio=2, out_indices=[1, 3], reshape_hidden_states=True)
    return ready(Dinov2Backbone(config)), {"pixel_values": pictures()}


def levit() -> Example:
    from transformers import LevitConfig, LevitForImageClassification

    config = LevitConfig(
        image_size=64,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        num_attention_heads=[2, 4],
        key_dim=[8, 8],
        mlp_ratio=[2, 2],
        attention_ratio=[2, 2],
        down_ops=[["Subsample", 8, 2, 2, 2, 2], [""]],
        num_labels=5,
    )
    return ready(LevitForImageClassification(config)), {"pixel_values": pictures(size=64)}


def idefics3_vision() -> Example:
    from transformers import Idefics3VisionConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

    return vision_model(Idefics3VisionTransformer, Idefics3VisionConfig)


def siglip2_vision() -> Example:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    sizes = {name: size for name, size in VISION.items() if name != "image_size"}
    model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=25))
    call = {"pixel_values": torch.randn(2, 25, 48, dtype=torch.float64)}
    call["pixel_attention_mask"] = torch.ones(2, 25, dtype=torch.long)
    call["spatial_shapes"] = torch.tensor([[5, 5], [5, 5]])
    return ready(model), call


def wav2vec2_bert() -> Example:
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    sizes = {name: TEXT[name] for name in TEXT if name in VISION}
    model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**sizes, feature_projection_input_dim=16))
    return ready(model), {"input_features": torch.randn(2, 24, 16, dtype=torch.float64)}


FAMILIES = (
    idefics3_vision,
    siglip2_vision,
    wav2vec2_bert,
    vit,
    deit,
    dinov2,
    beit_pooled,
    clip_vision,
    siglip,
    vit_features,
    dinov2_registers,
    dinov3,
    beit,
    data2vec_vision,
    vit_mae_encoder,
    vit_msn,
    ijepa,
    yolos,
    blip_vision,
    siglip2_like_text,
    swin,
    swinv2,
    pvt,
    segformer,
    convnext,
    audio_spectrogram,
    wav2vec2,
    hubert,
    videomae,
    vivit,
    clip,
    vilt,
    depth_anything_backbone,
    levit,
)
