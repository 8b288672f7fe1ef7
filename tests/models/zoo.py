"""Tiny random models of many families, in float64 so that near ties do not matter.

`FAMILIES` maps a name to a function that gives (model in eval mode, keyword arguments of a call).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
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


def vit() -> Example:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(**VISION, num_labels=5))
    return ready(model), {"pixel_values": pictures()}


def deit() -> Example:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**VISION, num_labels=5))
    return ready(model), {"pixel_values": pictures()}


def dinov2() -> Example:
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2))
    return ready(model), {"pixel_values": pictures()}


def beit_pooled() -> Example:
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(**VISION, num_labels=5, use_mean_pooling=True)
    config.use_shared_relative_position_bias = True
    return ready(BeitForImageClassification(config)), {"pixel_values": pictures()}


def bert() -> Example:
    from transformers import BertConfig, BertModel

    return ready(BertModel(BertConfig(**TEXT))), {"input_ids": words()}


def bert_padded() -> Example:
    model, _ = bert()
    return model, {"input_ids": words(), "attention_mask": right_padded()}


def bert_eager_padded() -> Example:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**TEXT, attn_implementation="eager"))
    return ready(model), {"input_ids": words(), "attention_mask": right_padded()}


def bert_masked_words() -> Example:
    from transformers import BertConfig, BertForMaskedLM

    return ready(BertForMaskedLM(BertConfig(**TEXT))), {"input_ids": words()}


def bert_classifier() -> Example:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**TEXT, num_labels=5))
    return ready(model), {"input_ids": words(), "attention_mask": right_padded()}


def distilbert() -> Example:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=48, vocab_size=VOCABULARY
    )
    return ready(DistilBertModel(config)), {"input_ids": words()}


def modernbert() -> Example:
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(**TEXT, pad_token_id=0, local_attention=8)
    return ready(ModernBertModel(config)), {
        "input_ids": words(),
        "attention_mask": torch.ones(2, 20, dtype=torch.long),
    }


def llama(**extra: Any) -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**TEXT, num_key_value_heads=2, **extra)
    model = ready(LlamaForCausalLM(config))
    return model, {"input_ids": words(), "use_cache": False, "logits_to_keep": 1}


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

    model = Qwen2ForCausalLM(Qwen2Config(**TEXT, num_key_value_heads=2))
    return ready(model), {"input_ids": words(), "use_cache": False, "logits_to_keep": 1}


def mistral() -> Example:
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(**TEXT, num_key_value_heads=2, sliding_window=8))
    return ready(model), {"input_ids": words(), "use_cache": False, "logits_to_keep": 1}


def phi() -> Example:
    from transformers import PhiConfig, PhiForCausalLM

    model = PhiForCausalLM(PhiConfig(**TEXT))
    return ready(model), {"input_ids": words(), "use_cache": False, "logits_to_keep": 1}


def gemma2() -> Example:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(**TEXT, num_key_value_heads=2, head_dim=8)
    return ready(Gemma2ForCausalLM(config)), {
        "input_ids": words(),
        "use_cache": False,
        "logits_to_keep": 1,
    }


def gpt2() -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY)
    model = GPT2LMHeadModel(config)
    return ready(model, 5.0), {"input_ids": words(), "use_cache": False, "logits_to_keep": 1}


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


def clip_vision() -> Example:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=24))
    return ready(model), {"pixel_values": pictures()}


def clip_text() -> Example:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(**TEXT, projection_dim=24, eos_token_id=2, bos_token_id=1)
    ids = words()
    ids[0, 12] = ids[1, 17] = 2
    return ready(CLIPTextModelWithProjection(config)), {"input_ids": ids}


def siglip() -> Example:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return ready(SiglipVisionModel(SiglipVisionConfig(**VISION))), {"pixel_values": pictures()}


class Block(nn.Module):
    """A pre-norm block with hand-written attention."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.before(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.causal:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
            mixed = weights @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.after(x))))


class Pooled(nn.Module):
    """Blocks with mean pooling and a classifier, as a user might write them."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.place = nn.Parameter(torch.randn(1, 64, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Stream(nn.Module):
    """Causal blocks that hand out every token."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def pooled() -> Example:
    return ready(Pooled(), 1.5), {"x": torch.randn(2, 18, 12, dtype=torch.float64)}


def causal_stream() -> Example:
    return ready(Stream(), 1.5), {"x": torch.randn(2, 18, 12, dtype=torch.float64)}


def torch_encoder() -> Example:
    layer = nn.TransformerEncoderLayer(  # an activation that no fused encoder layer knows
        WIDTH, HEADS, 48, dropout=0.0, activation=F.silu, batch_first=True
    )
    model = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    return ready(model, 1.5), {"src": torch.randn(2, 18, WIDTH, dtype=torch.float64)}


FAMILIES: dict[str, Callable[[], Example]] = {
    make.__name__: make
    for make in (
        vit,
        deit,
        dinov2,
        beit_pooled,
        clip_vision,
        siglip,
        bert,
        bert_padded,
        bert_eager_padded,
        bert_masked_words,
        bert_classifier,
        distilbert,
        modernbert,
        clip_text,
        t5_encoder,
        t5,
        llama,
        llama_all_logits,
        llama_classifier,
        qwen2,
        mistral,
        phi,
        gemma2,
        gpt2,
        pooled,
        causal_stream,
        torch_encoder,
    )
}
