"""Encoders with a decoder that looks at them, and such encoders alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.models.zoo.common import HEADS, LAYERS, VOCABULARY, WIDTH, Example, ready, words

T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_heads": HEADS, "vocab_size": VOCABULARY}
T5 |= {"num_layers": LAYERS, "dropout_rate": 0.0}


def t5_encoder() -> Example:
    from transformers import T5Config, T5EncoderModel

    return ready(T5EncoderModel(T5Config(**T5))), {"input_ids": words()}


def both_sides() -> dict[str, Any]:
    """A call with an encoder of 20 tokens and a decoder of 9."""
    return {"input_ids": words(), "decoder_input_ids": words(2, 9), "use_cache": False}


def t5() -> Example:
    from transformers import T5Config, T5Model

    call = both_sides()
    return ready(T5Model(T5Config(**T5))), call


SIDES = {"encoder_layers": 2, "decoder_layers": 2, "d_model": WIDTH, "vocab_size": VOCABULARY}
SIDES |= {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
SIDES |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
PLACES = {"max_position_embeddings": 64}


def two_sided(model: type, config: type, **extra: Any) -> Example:
    """An encoder of 20 tokens and a decoder of 9."""
    call = both_sides()
    return ready(model(config(**SIDES, **PLACES, **extra))), call


def bart() -> Example:
    from transformers import BartConfig, BartModel

    return two_sided(BartModel, BartConfig)


def mbart() -> Example:
    from transformers import MBartConfig, MBartModel

    return two_sided(MBartModel, MBartConfig)


def pegasus() -> Example:
    from transformers import PegasusConfig, PegasusModel

    return two_sided(PegasusModel, PegasusConfig)


def marian() -> Example:
    from transformers import MarianConfig, MarianModel

    extra = {"pad_token_id": 0, "decoder_start_token_id": 0, "decoder_vocab_size": VOCABULARY}
    return two_sided(MarianModel, MarianConfig, **extra)


def m2m_100() -> Example:
    from transformers import M2M100Config, M2M100Model

    return two_sided(M2M100Model, M2M100Config)


def blenderbot() -> Example:
    from transformers import BlenderbotConfig, BlenderbotModel

    return two_sided(BlenderbotModel, BlenderbotConfig)


def led() -> Example:
    from transformers import LEDConfig, LEDModel

    places = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
    call = both_sides()
    return ready(LEDModel(LEDConfig(**SIDES, **places, attention_window=4))), call


def mt5() -> Example:
    from transformers import MT5Config, MT5Model

    call = both_sides()
    return ready(MT5Model(MT5Config(**{**T5, "num_layers": 2}))), call


def whisper_parts() -> tuple[nn.Module, torch.Tensor]:
    """A whole Whisper, and mel bands for it."""
    from transformers import WhisperConfig, WhisperModel

    places = {"num_mel_bins": 8, "max_source_positions": 24, "max_target_positions": 32}
    names = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(**SIDES, **places, **names)
    return WhisperModel(config), torch.randn(2, 8, 48, dtype=torch.float64)


def whisper_encoder() -> Example:
    model, sound = whisper_parts()
    return ready(model.get_submodule("encoder")), {"input_features": sound}


def whisper() -> Example:
    model, sound = whisper_parts()
    call = {"input_features": sound, "decoder_input_ids": words(2, 9), "use_cache": False}
    return ready(model), call


FAMILIES = (
    t5_encoder,
    t5,
    bart,
    mbart,
    pegasus,
    marian,
    m2m_100,
    blenderbot,
    led,
    mt5,
    whisper_encoder,
    whisper,
)
