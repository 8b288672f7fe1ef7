"""Mixtures of experts of `transformers`: rows sorted, grouped and put back, in many ways."""

from __future__ import annotations

from tests.models.zoo.common import HEADS, Example
from tests.models.zoo.decoders import causal_model


def mixtral() -> Example:
    from transformers import MixtralConfig, MixtralForCausalLM

    extra = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    return causal_model(MixtralForCausalLM, MixtralConfig, **extra)


def qwen2_moe() -> Example:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    extra = {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    extra |= {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    return causal_model(Qwen2MoeForCausalLM, Qwen2MoeConfig, **extra)


def olmoe() -> Example:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    extra = {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    return causal_model(OlmoeForCausalLM, OlmoeConfig, **extra, pad_token_id=0)


def mixtral_looked_up() -> Example:
    from transformers import MixtralConfig, MixtralForCausalLM

    extra = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    extra |= {"experts_implementation": "batched_mm"}
    return causal_model(MixtralForCausalLM, MixtralConfig, **extra)


def mixtral_one_by_one() -> Example:
    from transformers import MixtralConfig, MixtralForCausalLM

    extra = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    extra |= {"experts_implementation": "eager"}
    return causal_model(MixtralForCausalLM, MixtralConfig, **extra)


def deepseek_v3() -> Example:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    extra = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2}
    extra |= {"first_k_dense_replace": 1, "moe_intermediate_size": 24, "n_shared_experts": 1}
    extra |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
    extra |= {"v_head_dim": 8, "num_key_value_heads": HEADS}
    return causal_model(DeepseekV3ForCausalLM, DeepseekV3Config, **extra)


def gpt_oss() -> Example:
    from transformers import GptOssConfig, GptOssForCausalLM

    extra = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "sliding_window": 8}
    extra |= {"num_experts_per_tok": 2}
    return causal_model(GptOssForCausalLM, GptOssConfig, **extra)


def phimoe() -> Example:
    from transformers import PhimoeConfig, PhimoeForCausalLM

    extra = {"num_key_value_heads": 2, "num_local_experts": 4}
    return causal_model(PhimoeForCausalLM, PhimoeConfig, **extra)


def granitemoe() -> Example:
    from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

    extra = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    return causal_model(GraniteMoeForCausalLM, GraniteMoeConfig, **extra)


def llama4() -> Example:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    extra = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}
    extra |= {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 48}
    return causal_model(Llama4ForCausalLM, Llama4TextConfig, **extra)


FAMILIES = (
    mixtral,
    qwen2_moe,
    olmoe,
    mixtral_looked_up,
    mixtral_one_by_one,
    deepseek_v3,
    gpt_oss,
    phimoe,
    granitemoe,
    llama4,
)
