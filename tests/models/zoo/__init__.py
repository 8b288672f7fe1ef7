"""The zoo: tiny random models of many families.

`FAMILIES` maps a name to a function that gives (model in eval mode, keyword arguments of a call).
The next family is one function in the file of its kind, and its entry in that file's tuple.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.models.zoo import (
    decoders,
    diffusion,
    encoder_decoders,
    encoders,
    hand_written,
    spellings,
    vision,
)
from tests.models.zoo.common import Example

KINDS = (vision, encoders, decoders, encoder_decoders, hand_written, spellings, diffusion)

FAMILIES: dict[str, Callable[[], Example]] = {
    make.__name__: make for kind in KINDS for make in kind.FAMILIES
}

SMALL_SET: tuple[str, ...] = (
    "vit",
    "deit",
    "beit_pooled",
    "clip_vision",
    "siglip",
    "bert_padded",
    "bert_eager_padded",
    "bert_masked_words",
    "bert_classifier",
    "modernbert",
    "deberta_v2",
    "convbert",
    "clip_text",
    "t5_encoder",
    "t5",
    "bart",
    "llama",
    "llama_all_logits",
    "llama_classifier",
    "llama_cached",
    "qwen2_moe",
    "mistral",
    "phi",
    "gemma2",
    "gpt2",
    "bloom",
    "mamba2",
    "pooled",
    "causal_stream",
    "torch_encoder",
    "torch_transformer",
    "written_einsum",
    "written_batched_heads",
    "written_parallel",
    "written_table_bias",
    "written_partial_rotary",
    "written_repeated_keys",
    "written_convolution",
    "written_hourglass",
    "written_two_streams",
    "written_experts",
    "written_unbatched",
    "torch_tokens_first",
    "dit",
)
"""Families that reach every rule and region between them: these run in the default test run."""

DENSE: dict[str, str] = {}
"""Families that are left dense, with the code that says why."""

TOLERANCE: dict[str, float] = {"gemma2": 1e-5, "llama_eager": 1e-6, "gptj": 1e-8, "codegen": 1e-8}
"""Families that compute a part in float32 whatever the dtype."""
