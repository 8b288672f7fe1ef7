"""The zoo: tiny random models of many families.

`FAMILIES` maps a name to a function that gives (model in eval mode, keyword arguments of a call).
The next family is one function in the file of its kind, and its entry in that file's tuple.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.models.zoo import (
    attention_spellings,
    decoders,
    diffusion,
    encoder_decoders,
    encoders,
    experts,
    hand_written,
    mixing_spellings,
    vision,
)
from tests.models.zoo.common import Example

KINDS = (
    vision,
    encoders,
    decoders,
    experts,
    encoder_decoders,
    hand_written,
    attention_spellings,
    mixing_spellings,
    diffusion,
)

FAMILIES: dict[str, Callable[[], Example]] = {
    make.__name__: make for kind in KINDS for make in kind.FAMILIES
}

SMALL_SET: tuple[str, ...] = (
    "vit",
    "deit",
    "beit_pooled",
    "siglip",
    "bert_eager_padded",
    "bert_classifier",
    "modernbert",
    "deberta_v2",
    "convbert",
    "clip_text",
    "t5",
    "llama",
    "llama_classifier",
    "llama_cached",
    "qwen2_moe",
    "gpt2",
    "bloom",
    "mamba2",
    "deepseek_v3",
    "causal_stream",
    "torch_encoder",
    "written_einsum",
    "written_viewed_heads",
    "written_batched_heads",
    "written_table_bias",
    "written_content_bias",
    "written_repeated_keys",
    "written_convolution",
    "written_two_streams",
    "written_unbatched",
    "dit",
)
"""Families that reach every rule and region between them: these run in the default test run."""

DENSE: dict[str, str] = {
    # later tokens must not move what earlier ones give, and all of it is read
    "causal_stream": "causal_leak",
    "clip_text": "causal_leak",
    "led": "causal_leak",
    "llama_all_logits": "causal_leak",
    "llama_classifier": "causal_leak",
    "llama_cached": "cache_keeps_length",
    # tokens attend within windows, or to a shorter copy of themselves
    "funnel": "no_site",
    "pvt": "nothing_behind",
    "segformer": "no_token_stream",
    "swin": "window_partition",
    "swinv2": "window_partition",
    "written_windows": "window_partition",
    # attention over two streams laid end to end, or over a picture's pixels between convolutions
    "sd3": "no_token_stream",
    "unet": "no_token_stream",
    "levit": "no_chain",
    # several values together separate the input from the output, and no single one
    "written_two_streams": "declined",
    # no attention, or none that is recognised
    "convnext": "no_token_stream",
    "fnet": "no_token_stream",
    "mamba": "functorch_region",
    "mamba2": "no_token_stream",
    "rwkv": "no_token_stream",
    # attention beside learnt sinks
    "gpt_oss": "no_token_stream",
    # a loop over the experts that were hit breaks the graph
    "mixtral_one_by_one": "no_token_stream",
    "written_softmax": "no_token_stream",
}
"""Families that are left dense, with the code that says why (`declined`: the planner's note)."""

TOLERANCE: dict[str, float] = {
    # parts are computed in float32 whatever the dtype
    "bloom": 1e-7,
    "codegen": 1e-8,
    "deberta": 1e-6,
    "eurobert": 1e-6,
    "gemma2": 1e-6,
    "gpt_neo": 1e-8,
    "gptj": 1e-8,
    "llama_eager": 1e-6,
    "mpt": 1e-6,
    # attention without a softmax is no region: it decays by the distance of representatives, where
    # the reference takes every member's own
    "minimax": 0.05,
}
"""Largest relative distance to dense (budget 1.0) and to the reference, where not 1e-9."""
