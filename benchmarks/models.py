"""The cases at real size: unmodified `transformers` models, random weights where speed is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

Inputs = Mapping[str, Any]
Build = Callable[[], tuple[nn.Module, Inputs]]
BUDGETS = (1.0, 0.5)
CLASSES = 1000


@dataclass(frozen=True)
class Stack:
    """Sizes of a transformer, enough to count its multiplications."""

    layers: int
    tokens: int
    width: int
    mlp_width: int
    mlp_matrices: int = 2
    kv_share: float = 1.0
    outside: float = 0.0
    """Multiplications outside the layers."""

    def dead_token_speedup(self) -> float:
        """What not computing the last layer for unread tokens saves, if all flops cost alike.

        Of the last layer only keys and values of all tokens remain:
        queries, attention, output projection and MLP run for one token.
        """
        attention = 2 * self.tokens * self.width
        projections = 2 * self.width**2 + (keys_values := 2 * self.kv_share * self.width**2)
        mlp = self.mlp_matrices * self.width * self.mlp_width
        layer = self.tokens * (attention + projections + mlp)
        total = self.layers * layer + self.outside
        last = self.tokens * keys_values + layer / self.tokens
        return total / (total - layer + last)


@dataclass(frozen=True)
class Case:
    """One model and one input; `output` picks the tensor that agreement is judged by.

    `dead_token_speedup` is what exact edits allow at budget 1.0 (1.0: nothing is dead).
    """

    name: str
    build: Build
    output: Callable[[Any], Tensor]
    budgets: tuple[float, ...] = BUDGETS
    dead_token_speedup: float = 1.0
    layers: int = 12


def logits(result: Any) -> Tensor:
    """The logits of a model with a head."""
    return result.logits


def last_hidden_state(result: Any) -> Tensor:
    """The last hidden state of a model without a head."""
    return result.last_hidden_state


def vit(*, size: int, width: int, layers: int, heads: int, batch: int) -> Build:
    """An image classifier with patches of 16, a thousand classes, and noise as its image."""

    def build() -> tuple[nn.Module, Inputs]:
        torch.manual_seed(0)
        config = ViTConfig(
            image_size=size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
        )
        config.num_labels = CLASSES
        model = ViTForImageClassification(config).eval()
        return model, {"pixel_values": torch.randn(batch, 3, size, size)}

    return build


def vit_stack(*, size: int, width: int, layers: int) -> Stack:
    """The sizes of `vit`; outside its layers it projects patches of 16 x 16 x 3."""
    tokens = (size // 16) ** 2 + 1
    return Stack(layers, tokens, width, 4 * width, outside=tokens * width * 16 * 16 * 3)


def build_bert() -> tuple[nn.Module, Inputs]:
    """BERT-base over four texts of different lengths, padded on the right to 512."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(), add_pooling_layer=False).eval()
    lengths = torch.tensor([512, 431, 350, 269])
    mask = (torch.arange(512) < lengths[:, None]).long()
    tokens = torch.randint(1000, 30_000, (4, 512)) * mask
    return model, {"input_ids": tokens, "attention_mask": mask}


def build_minilm() -> tuple[nn.Module, Inputs]:
    """The pretrained sentence encoder over eight passages of the demo's corpus."""
    # its package is the one that the other cases do without
    from benchmarks.corpus import build_corpus  # noqa: PLC0415
    from benchmarks.encoder import load_encoder, passage_batches  # noqa: PLC0415

    encoder = load_encoder()
    passages = build_corpus(encoder.tokenizer, limit=8)
    return encoder.model, {"input_ids": passage_batches(passages)[0]}


def build_llama() -> tuple[nn.Module, Inputs]:
    """A small decoder's prefill of 2,048 tokens of which only the last one's logits are wanted."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, 32_000, (1, 2048))
    return model, {"input_ids": tokens, "use_cache": False, "logits_to_keep": 1}


VIT_S = {"size": 224, "width": 384, "layers": 12}
VIT_B = {"size": 224, "width": 768, "layers": 12}
VIT_L = {"size": 384, "width": 1024, "layers": 24}
LLAMA = Stack(8, 2048, 1024, 2816, mlp_matrices=3, kv_share=0.25, outside=1024 * 32_000)


def _vit_case(name: str, sizes: dict[str, int], heads: int, batch: int) -> Case:
    return Case(
        name,
        vit(**sizes, heads=heads, batch=batch),
        logits,
        dead_token_speedup=vit_stack(**sizes).dead_token_speedup(),
        layers=sizes["layers"],
    )


CASES: tuple[Case, ...] = (
    _vit_case("vit_s_224_b1", VIT_S, 6, 1),
    _vit_case("vit_b_224_b1", VIT_B, 12, 1),
    _vit_case("vit_b_224_b8", VIT_B, 12, 8),
    _vit_case("vit_l_384_b1", VIT_L, 16, 1),
    Case("bert_base_512_b4", build_bert, last_hidden_state),
    Case("minilm_256_b8", build_minilm, last_hidden_state, layers=6),
    Case(
        "llama_2048_b1",
        build_llama,
        logits,
        dead_token_speedup=LLAMA.dead_token_speedup(),
        layers=8,
    ),
)
QUICK_CASES = ("vit_s_224_b1", "minilm_256_b8")


def find_case(name: str) -> Case:
    """The case of that name.

    Raises:
        ValueError: There is none; the message lists those that there are.
    """
    for case in CASES:
        if case.name == name:
            return case
    names = ", ".join(case.name for case in CASES)
    raise ValueError(f"no case is called {name!r}; there are: {names}")
