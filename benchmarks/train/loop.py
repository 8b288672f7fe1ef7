"""Training: the same recipe, text, machine and thread count give the same weights.

Windows of a step are drawn from the seed and the step's number alone, so a run that was stopped
continues as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from benchmarks.train.recipe import Recipe, Stage, build
from benchmarks.train.text import Text, as_tensor

Say = Callable[[str], None]
SAID_EVERY = 50
SAVED_EVERY = 200
SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Trained:
    """The model in `eval()`, the loss of each step of this run in bits per byte, and seconds.

    `seconds` counts all runs that led here.
    """

    model: PreTrainedModel
    losses: tuple[float, ...]
    seconds: float


def train(
    recipe: Recipe,
    text: Text,
    *,
    checkpoint: Path | None = None,
    stop: int | None = None,
    say: Say = lambda line: None,
) -> Trained:
    """Train from the start, or from `checkpoint` where that file exists, to step `stop` or the end.

    Raises:
        ValueError: The checkpoint is of another recipe or another text.
    """
    torch.manual_seed(recipe.seed)
    model = build(recipe.variant, recipe.sizes)
    optimizer = _optimizer(model, recipe)
    step, earlier = _resume(checkpoint, recipe, text, model, optimizer)
    content = as_tensor(text.training)
    started, losses = time.monotonic(), []
    last = recipe.steps if stop is None else min(stop, recipe.steps)
    with mlp_inputs(model) as inputs:
        loss_of = torch.compile(_loss, dynamic=False) if recipe.compiled else _loss
        while step < last:
            windows = draw(content, recipe.stage_of(step), recipe.seed, step)
            loss = _step(model, optimizer, loss_of, windows, inputs, recipe, step)
            losses.append(loss / math.log(2))
            step += 1
            seconds = earlier + time.monotonic() - started
            if step % SAID_EVERY == 0 or step == last:
                recent = losses[-SAID_EVERY:]
                mean = sum(recent) / len(recent)
                say(f"{recipe.variant} {step}/{recipe.steps}: {mean:.3f} bits, {seconds:.0f} s")
            if checkpoint is not None and (step % SAVED_EVERY == 0 or step == last):
                _save(checkpoint, recipe, text, model, optimizer, step, seconds)
    return Trained(model.eval(), tuple(losses), earlier + time.monotonic() - started)


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate: a linear warm-up to the peak, then half a cosine to the last rate.

    A restart begins at its own rate.
    """
    first, end, restart = recipe.cycle_of(step)
    peak = recipe.peak_rate if restart is None else restart
    begin = recipe.warm_up if restart is None else first
    if step < begin:
        return peak * (step + 1) / recipe.warm_up
    done = (step - begin) / max(1, end - begin)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return recipe.last_rate + (peak - recipe.last_rate) * cosine


def draw(content: Tensor, stage: Stage, seed: int, step: int) -> Tensor:
    """The windows of one step, int64 [batch, tokens + 1], from uint8 [length]."""
    generator = torch.Generator().manual_seed(seed * SEED_STRIDE + step)
    starts = torch.randint(len(content) - stage.tokens, (stage.batch, 1), generator=generator)
    return content[starts + torch.arange(stage.tokens + 1)].long()


@contextmanager
def mlp_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what enters each MLP's last projection [batch, tokens, mlp width], layer by layer.

    The list is the reader's to clear between calls.
    """
    found: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
        for name, module in model.named_modules()
        if name.endswith("mlp.down_proj")
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _loss(
    model: nn.Module, windows: Tensor, inputs: list[Tensor], push: float
) -> tuple[Tensor, Tensor]:
    """(what is minimised, the cross entropy in nats) of windows [batch, tokens + 1]."""
    inputs.clear()
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    entropy = cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
    if not push:
        return entropy, entropy
    size = torch.stack([value.float().abs().mean() for value in inputs]).mean()
    return entropy + push * size, entropy


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[..., tuple[Tensor, Tensor]],
    windows: Tensor,
    inputs: list[Tensor],
    recipe: Recipe,
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate(recipe, step)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        loss, entropy = loss_of(model, windows, inputs, recipe.push)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return float(entropy.detach())


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; vectors (norms) do not decay."""
    matrices = [value for value in model.parameters() if value.dim() > 1]
    vectors = [value for value in model.parameters() if value.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=recipe.betas, fused=True)


def _resume(
    checkpoint: Path | None,
    recipe: Recipe,
    text: Text,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, float]:
    """(next step, seconds so far), after loading what was saved."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0.0
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    if saved["recipe"] != recipe.as_data() or saved["digest"] != text.digest:
        raise ValueError(
            f"{checkpoint} was made by another recipe or from another text than this run's: "
            "remove it, or name another file"
        )
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["seconds"]


def _save(
    checkpoint: Path,
    recipe: Recipe,
    text: Text,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    """Written beside the old file first, so that a run stopped here loses nothing."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    fresh = checkpoint.with_suffix(".new")
    state = {
        "recipe": recipe.as_data(),
        "digest": text.digest,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, fresh)
    fresh.replace(checkpoint)
