"""Decoders of `transformers`: one call of many tokens, most of them for the last one's logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.models.zoo.common import HEADS, LAYERS, TEXT, VOCABULARY, WIDTH, Example, ready, words

SHORT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCABULARY}
"""The common sizes as GPT-2 calls them."""


def last_logits() -> dict[str, Any]:
    """A call that wants the logits of the last word alone."""
    return {"input_ids": words(), "use_cache": False, "logits_to_keep": 1}


def causal_model(
    model: type, config: type, sizes: Mapping[str, Any] = TEXT, **extra: Any
) -> Example:
    """A decoder in the common sizes, read at its last token."""
    call = last_logits()
    return ready(model(config(**{**sizes, **extra}))), call


def llama(**extra: Any) -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**TEXT, num_key_value_heads=2, **extra)
    return ready(LlamaForCausalLM(config)), last_logits()


def llama_all_logits() -> Example:
    model, call = llama()
    return model, {**call, "logits_to_keep": 0}


def llama_classifier() -> Example:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**TEXT, num_key_value_heads=2, num_labels=5, pad_token_id=0)
    ids = words()
    ids[1:, 15:] = 0
    model = ready(LlamaForSequenceClassification(config))
    return model, {"input_ids": ids, "attention_mask": (ids != 0).long(), "use_cache": False}


def qwen2() -> Example:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return causal_model(Qwen2ForCausalLM, Qwen2Config, num_key_value_heads=2)


def mistral() -> Example:
    from transformers import MistralConfig, MistralForCausalLM

    extra = {"num_key_value_heads": 2, "sliding_window": 8}
    return causal_model(MistralForCausalLM, MistralConfig, **extra)


def phi() -> Example:
    from transformers import PhiConfig, PhiForCausalLM

    return causal_model(PhiForCausalLM, PhiConfig)


def gemma2() -> Example:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return causal_model(Gemma2ForCausalLM, Gemma2Config, num_key_value_heads=2, head_dim=8)


def gpt2() -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    return ready(GPT2LMHeadModel(GPT2Config(**SHORT)), 5.0), last_logits()


def qwen3() -> Example:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return causal_model(Qwen3ForCausalLM, Qwen3Config, num_key_value_heads=2, head_dim=8)


def gemma() -> Example:
    from transformers import GemmaConfig, GemmaForCausalLM

    return causal_model(GemmaForCausalLM, GemmaConfig, num_key_value_heads=1, head_dim=8)


def gemma3() -> Example:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    extra = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
    return causal_model(Gemma3ForCausalLM, Gemma3TextConfig, **extra)


def phi3() -> Example:
    from transformers import Phi3Config, Phi3ForCausalLM

    return causal_model(Phi3ForCausalLM, Phi3Config, num_key_value_heads=2, pad_token_id=0)


def stablelm() -> Example:
    from transformers import StableLmConfig, StableLmForCausalLM

    extra = {"num_key_value_heads": 2, "use_parallel_residual": True}
    return causal_model(StableLmForCausalLM, StableLmConfig, **extra)


def gpt_neox() -> Example:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return causal_model(GPTNeoXForCausalLM, GPTNeoXConfig, rotary_pct=0.5)


def gptj() -> Example:
    from transformers import GPTJConfig, GPTJForCausalLM

    return causal_model(GPTJForCausalLM, GPTJConfig, SHORT, rotary_dim=4)


def gpt_neo() -> Example:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    sizes = {"hidden_size": WIDTH, "num_layers": 2, "num_heads": HEADS, "window_size": 8}
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
    kinds = [[["global", "local"], 1]]
    return causal_model(GPTNeoForCausalLM, GPTNeoConfig, sizes, attention_types=kinds)


def bloom() -> Example:
    from transformers import BloomConfig, BloomForCausalLM

    sizes = {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCABULARY}
    return causal_model(BloomForCausalLM, BloomConfig, sizes)


def falcon() -> Example:
    from transformers import FalconConfig, FalconForCausalLM

    return causal_model(FalconForCausalLM, FalconConfig, alibi=False)


def falcon_alibi() -> Example:
    from transformers import FalconConfig, FalconForCausalLM

    return causal_model(FalconForCausalLM, FalconConfig, alibi=True)


def mpt() -> Example:
    from transformers import MptConfig, MptForCausalLM

    sizes = {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "vocab_size": VOCABULARY}
    return causal_model(MptForCausalLM, MptConfig, sizes, max_seq_len=64)


def opt() -> Example:
    from transformers import OPTConfig, OPTForCausalLM

    extra = {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "pad_token_id": 1}
    return causal_model(OPTForCausalLM, OPTConfig, **extra)


def olmo2() -> Example:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    return causal_model(Olmo2ForCausalLM, Olmo2Config, num_key_value_heads=2, pad_token_id=0)


def granite() -> Example:
    from transformers import GraniteConfig, GraniteForCausalLM

    return causal_model(GraniteForCausalLM, GraniteConfig, num_key_value_heads=2)


def cohere() -> Example:
    from transformers import CohereConfig, CohereForCausalLM

    return causal_model(CohereForCausalLM, CohereConfig, num_key_value_heads=2, pad_token_id=0)


def starcoder2() -> Example:
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    return causal_model(Starcoder2ForCausalLM, Starcoder2Config, num_key_value_heads=2)


def gpt_bigcode() -> Example:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    return causal_model(GPTBigCodeForCausalLM, GPTBigCodeConfig, SHORT, n_positions=64)


def codegen() -> Example:
    from transformers import CodeGenConfig, CodeGenForCausalLM

    return causal_model(CodeGenForCausalLM, CodeGenConfig, SHORT, rotary_dim=4)


def helium() -> Example:
    from transformers import HeliumConfig, HeliumForCausalLM

    extra = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    return causal_model(HeliumForCausalLM, HeliumConfig, **extra)


def glm() -> Example:
    from transformers import GlmConfig, GlmForCausalLM

    extra = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    return causal_model(GlmForCausalLM, GlmConfig, **extra)


def smollm3() -> Example:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    extra = {"num_key_value_heads": 2, "pad_token_id": 0}
    return causal_model(SmolLM3ForCausalLM, SmolLM3Config, **extra)


def doge() -> Example:
    from transformers import DogeConfig, DogeForCausalLM

    return causal_model(DogeForCausalLM, DogeConfig, num_key_value_heads=2)


def minimax() -> Example:
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    extra = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}
    return causal_model(MiniMaxForCausalLM, MiniMaxConfig, **extra)


def mamba() -> Example:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        hidden_size=WIDTH, num_hidden_layers=2, state_size=4, vocab_size=VOCABULARY
    )
    call = {"input_ids": words(), "use_cache": False}
    return ready(MambaForCausalLM(config)), call


def mamba2() -> Example:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=8,
        vocab_size=VOCABULARY,
    )
    call = {"input_ids": words(), "use_cache": False}
    return ready(Mamba2ForCausalLM(config)), call


def rwkv() -> Example:
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(hidden_size=WIDTH, num_hidden_layers=2, vocab_size=VOCABULARY)
    return ready(RwkvForCausalLM(config)), {"input_ids": words(), "use_cache": False}


def llama_eager() -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    extra = {"num_key_value_heads": 2, "attn_implementation": "eager"}
    return causal_model(LlamaForCausalLM, LlamaConfig, **extra)


def llama_left_padded() -> Example:
    model, call = llama()
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :6] = 0
    return model, {**call, "attention_mask": mask}


def llama_cached() -> Example:
    model, call = llama()
    return model, {**call, "use_cache": True}


FAMILIES = (
    llama,
    llama_all_logits,
    llama_classifier,
    qwen2,
    mistral,
    phi,
    gemma2,
    gpt2,
    qwen3,
    gemma,
    gemma3,
    phi3,
    stablelm,
    gpt_neox,
    gptj,
    gpt_neo,
    bloom,
    falcon,
    falcon_alibi,
    mpt,
    opt,
    olmo2,
    granite,
    cohere,
    starcoder2,
    gpt_bigcode,
    codegen,
    helium,
    glm,
    smollm3,
    doge,
    minimax,
    mamba,
    mamba2,
    rwkv,
    llama_eager,
    llama_left_padded,
    llama_cached,
)
