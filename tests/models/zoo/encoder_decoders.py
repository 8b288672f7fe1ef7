"""Encoders with a decoder that looks at them, and such encoders alone."""

from __future__ import annotations

from typing import Any

import torch

from tests.models.zoo.common import HEADS, LAYERS, VOCABULARY, WIDTH, Example, ready, words


def t5_config() -> Any:
    from transformers import T5Config

    return T5Config(
        d_model=WIDTH,
        d_kv=8,
        d_ff=48,
        num_layers=LAYERS,
        num_heads=HEADS,
        vocab_size=VOCABULARY,
        dropout_rate=0.0,
    )


def t5_encoder() -> Example:
    from transformers import T5EncoderModel

    return ready(T5EncoderModel(t5_config())), {"input_ids": words()}


def t5() -> Example:
    from transformers import T5Model

    call = {"input_ids": words(), "decoder_input_ids": words(2, 9), "use_cache": False}
    return ready(T5Model(t5_config())), call


SIDES = {"encoder_layers": 2, "decoder_layers": 2, "d_model": WIDTH, "vocab_size": VOCABULARY}
SIDES |= {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
SIDES |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}


def two_sided(model: type, config: type, **extra: Any) -> Example:
    """An encoder of 20 tokens and a decoder of 9."""
    call = {"input_ids": words(), "decoder_input_ids": words(2, 9), "use_cache": False}
    return ready(model(config(**{**SIDES, **extra}))), call


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

    extra = {"attention_window": 4, "max_encoder_position_embeddings": 64}
    extra |= {"max_decoder_position_embeddings": 64}
    sides = {name: value for name, value in SIDES.items() if name != "max_position_embeddings"}
    call = {"input_ids": words(), "decoder_input_ids": words(2, 9), "use_cache": False}
    return ready(LEDModel(LEDConfig(**sides, **extra))), call


def mt5() -> Example:
    from transformers import MT5Config, MT5Model

    config = MT5Config(
        d_model=WIDTH,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=HEADS,
        vocab_size=VOCABULARY,
        dropout_rate=0.0,
    )
    call = {"input_ids": words(), "decoder_input_ids": words(2, 9), "use_cache": False}
    return ready(MT5Model(config)), call


def whisper_encoder() -> Example:
    from transformers import WhisperConfig, WhisperModel

    sides = {name: value for name, value in SIDES.items() if name != "max_position_embeddings"}
    extra = {"num_mel_bins": 8, "max_source_positions": 24, "max_target_positions": 32}
    config = WhisperConfig(**sides, **extra, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    sound = torch.randn(2, 8, 48, dtype=torch.float64)
    return ready(WhisperModel(config).encoder), {"input_features": sound}


def whisper() -> Example:
    from transformers import WhisperConfig, WhisperModel

    sides = {name: value for name, value in SIDES.items() if name != "max_position_embeddings"}
    extra = {"num_mel_bins": 8, "max_source_positions": 24, "max_target_positions": 32}
    config = WhisperConfig(
        **sides, **extra, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1
    )
    sound = torch.randn(2, 8, 48, dtype=torch.float64)
    call = {"input_features": sound, "decoder_input_ids": words(2, 9), "use_cache": False}
    return ready(WhisperModel(config)), call


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
