"""The benchmark's cases as the check file names them: each gives (model, (), kwargs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from benchmarks.models import find_case

Target = tuple[nn.Module, tuple[()], Mapping[str, Any]]


def target(name: str) -> Target:
    """A case's model, and the call of it."""
    model, inputs = find_case(name).build()
    return model, (), inputs


def vit_s() -> Target:
    """ViT-S/16, one image."""
    return target("vit_s_224_b1")


def vit_b() -> Target:
    """ViT-B/16, one image."""
    return target("vit_b_224_b1")


def vit_b_8() -> Target:
    """ViT-B/16, eight images."""
    return target("vit_b_224_b8")


def vit_l() -> Target:
    """ViT-L/16 at 384 pixels, one image."""
    return target("vit_l_384_b1")


def bert() -> Target:
    """BERT-base, four padded texts of 512 tokens."""
    return target("bert_base_512_b4")


def minilm() -> Target:
    """The pretrained MiniLM, eight passages of 256 tokens."""
    return target("minilm_256_b8")


def llama() -> Target:
    """A decoder's prefill of 2,048 tokens."""
    return target("llama_2048_b1")
