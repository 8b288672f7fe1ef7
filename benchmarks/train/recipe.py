"""How the decoders are made, as data: sizes, stages of training, and the two variants."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from transformers import (
    ArceeConfig,
    ArceeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from benchmarks.train.text import SEPARATOR

Variant = Literal["swiglu", "relu2"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
CLASSES: dict[Variant, tuple[type[PreTrainedModel], type[Any]]] = {
    "swiglu": (LlamaForCausalLM, LlamaConfig),
    "relu2": (ArceeForCausalLM, ArceeConfig),
}
"""Both have the same attention, norms and rotary tables; Arcee's MLP is ungated, relu squared."""
BYTES = 256


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder; with `mlp_width` 576 and two matrices, 384 and three weigh the same."""

    mlp_width: int
    layers: int = 6
    width: int = 160
    heads: int = 4
    key_heads: int = 2
    head_width: int = 32
    context: int = 1024


@dataclass(frozen=True)
class Stage:
    """`steps` steps on `batch` windows of `tokens` bytes each.

    With `restart`, the learning rate begins a cosine of its own there; without, it goes on along
    that of the stages before.
    """

    tokens: int
    batch: int
    steps: int
    restart: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the text and the machine's arithmetic.

    `push` weighs the mean absolute value of what enters each MLP's last projection.
    """

    variant: Variant
    sizes: Sizes
    stages: tuple[Stage, ...]
    seed: int = 0
    peak_rate: float = 3e-3
    last_rate: float = 3e-5
    warm_up: int = 200
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    push: float = 0.0
    bf16: bool = True
    compiled: bool = True

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> Stage:
        """The stage that a step, counted from 0, belongs to.

        Raises:
            ValueError: No stage has that step.
        """
        left = step
        for stage in self.stages:
            if left < stage.steps:
                return stage
            left -= stage.steps
        raise ValueError(f"step {step} of {self.steps}: steps are counted from 0")

    def cycle_of(self, step: int) -> tuple[int, int, float | None]:
        """(first step, behind the last step, rate of a restart) of the cosine at a step."""
        starts: list[tuple[int, float | None]] = [(0, None)]
        at = 0
        for stage in self.stages:
            if stage.restart is not None:
                starts.append((at, stage.restart))
            at += stage.steps
        ends = [first for first, _ in starts[1:]] + [at]
        found = [
            (first, end, restart)
            for (first, restart), end in zip(starts, ends, strict=True)
            if first <= step
        ]
        return found[-1]

    def as_data(self) -> dict[str, Any]:
        """The recipe in lists, numbers and strings, as YAML and checkpoints hold it."""
        data = asdict(self)
        data["stages"] = [asdict(stage) for stage in self.stages]
        data["betas"] = list(self.betas)
        return data


STAGES = (
    Stage(tokens=256, batch=8, steps=3000),
    Stage(tokens=1024, batch=2, steps=350),
    Stage(tokens=1024, batch=2, steps=400, restart=1e-3),
)
"""Short windows first: attention's backward pass dominates long ones. Positions that the first
stage never saw cost a bit per byte at first; the end of a cosine is too slow to win that back."""
RECIPES: dict[Variant, Recipe] = {
    "swiglu": Recipe("swiglu", Sizes(mlp_width=384), STAGES),
    "relu2": Recipe("relu2", Sizes(mlp_width=576), STAGES),
}


def build(variant: Variant, sizes: Sizes) -> PreTrainedModel:
    """A decoder with fresh weights, drawn from torch's current random state.

    Raises:
        ValueError: There is no such variant.
    """
    if variant not in CLASSES:
        raise ValueError(f"no variant is called {variant!r}; there are: {', '.join(VARIANTS)}")
    model_class, config_class = CLASSES[variant]
    config = config_class(
        vocab_size=BYTES,
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads,
        head_dim=sizes.head_width,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=True,
        bos_token_id=SEPARATOR[0],
        eos_token_id=SEPARATOR[0],
        attn_implementation="sdpa",
    )
    return model_class(config)
