"""What is compared: dense Inductor, and tokenpass at a budget with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Variant:
    """One way to compile a model; `budget` is `None` for dense Inductor."""

    name: str
    budget: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


DENSE = Variant("dense")


def tokenpass_variant(budget: float, **options: Any) -> Variant:
    """Tokenpass with its default passes at a budget."""
    return Variant(f"budget {budget:g}", budget, options)


def pruning_variant(policy: str, budget: float) -> Variant:
    """A control: the same predicted cost, spent by token pruning with the given policy alone.

    It runs eagerly: only its quality is asked, and that does not need Inductor's compile time.
    """
    passes = [{"token_prune": {"policy": policy}}]
    return Variant(f"{policy} {budget:g}", budget, {"passes": passes, "lowering": "eager"})


def compile_variant(model: nn.Module, variant: Variant) -> Callable[..., Any]:
    """The compiled model; nothing is compiled before its first call."""
    if variant.budget is None:
        return torch.compile(model)
    options = {"budget": variant.budget, **variant.options}
    return torch.compile(model, backend="tokenpass", options=options)
