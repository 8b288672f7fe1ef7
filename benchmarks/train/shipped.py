"""The trained decoders as files: weights rounded to 16 bits, and a card that says how they came."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.perplexity import Predict, window_bits
from benchmarks.train.loop import Trained, mlp_inputs
from benchmarks.train.recipe import CLASSES, VARIANTS, Recipe, Sizes, Variant, build
from benchmarks.train.text import Text, windows

FOLDER = Path(__file__).resolve().parent / "weights"
TIED = "lm_head.weight"
"""Left out of the file: it is the embedding."""
STORED = torch.float16
"""Of 16 bits: ten of mantissa, and no weight comes near its largest number."""
MEASURED = 256
"""Windows of the held-out text that a card's numbers are means of."""
SLICE = 16
"""Windows of the small measurement that tests repeat."""
LICENCE = (
    "Weights are under this repository's licence. They were trained on Python's standard library "
    "and the text of its topics, which are under the PSF License Agreement, version 2; none of "
    "that text is part of the files."
)


@dataclass(frozen=True)
class Stated:
    """What a card says was measured: bits per byte of held-out text, and zeros of each layer.

    `full` is before rounding, `stored` after, over `MEASURED` windows of the model's context that
    are spread evenly over the text; `of_slice` is `stored` over `SLICE` windows. `zeros` is the
    share of exact zeros among what enters each MLP's last projection.
    """

    full: float
    stored: float
    of_slice: float
    zeros: tuple[float, ...]


def load(variant: Variant, *, folder: Path = FOLDER) -> PreTrainedModel:
    """The trained decoder in float32, in `eval()`.

    Raises:
        ValueError: There is no such variant, or its weights are not those of its card.
        FileNotFoundError: It has not been trained: the message names the command.
    """
    if variant not in CLASSES:
        raise ValueError(f"no variant is called {variant!r}; there are: {', '.join(VARIANTS)}")
    weights = folder / f"{variant}.safetensors"
    if not weights.exists():
        command = f"python -m benchmarks.train --variant {variant}"
        raise FileNotFoundError(f"{weights} is missing: it is made by `{command}`")
    model = build(variant, Sizes(**card(variant, folder=folder)["recipe"]["sizes"]))
    _fill(model, load_file(weights))
    return model.eval()


def card(variant: Variant, *, folder: Path = FOLDER) -> dict[str, Any]:
    """How the weights came and what they reach, as the YAML file beside them says."""
    return yaml.safe_load((folder / f"{variant}.yaml").read_text(encoding="utf-8"))


def ship(recipe: Recipe, trained: Trained, text: Text, *, folder: Path = FOLDER) -> Stated:
    """Write weights and card, and return what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = windows(text.held_out, recipe.sizes.context, limit=MEASURED)
    full = float(window_bits(predictor(trained.model), rows).mean())
    values = {
        name: value.to(STORED).contiguous()
        for name, value in trained.model.state_dict().items()
        if name != TIED
    }
    save_file(values, folder / f"{recipe.variant}.safetensors")
    _fill(trained.model, values)
    small = windows(text.held_out, recipe.sizes.context, limit=SLICE)
    stated = Stated(
        full=full,
        stored=float(window_bits(predictor(trained.model), rows).mean()),
        of_slice=float(window_bits(predictor(trained.model), small).mean()),
        zeros=zero_shares(trained.model, small),
    )
    (folder / f"{recipe.variant}.yaml").write_text(
        yaml.safe_dump(_card(recipe, trained, text, stated), sort_keys=False, width=100)
    )
    return stated


def predictor(model: PreTrainedModel) -> Predict:
    """The model as `window_bits` calls it: ids [batch, tokens] -> logits [batch, tokens, 256]."""

    def predict(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    return predict


def zero_shares(model: PreTrainedModel, rows: Tensor) -> tuple[float, ...]:
    """Share of exact zeros among what enters each MLP's last projection, layer by layer."""
    shares: list[list[float]] = []
    with torch.no_grad(), mlp_inputs(model) as inputs:
        for part in rows.split(4):
            inputs.clear()
            model(input_ids=part[:, :-1], use_cache=False)
            shares.append([float((value == 0).double().mean()) for value in inputs])
    return tuple(sum(layer) / len(layer) for layer in zip(*shares, strict=True))


def _fill(model: PreTrainedModel, stored: Mapping[str, Tensor]) -> None:
    """Give the model the weights of a file.

    Raises:
        ValueError: Names do not fit.
    """
    missing, unknown = model.load_state_dict(stored, strict=False)
    if wrong := {*missing, *unknown} - {TIED}:
        raise ValueError(f"weights and card do not fit: {', '.join(sorted(wrong))}")


def _card(recipe: Recipe, trained: Trained, text: Text, stated: Stated) -> dict[str, Any]:
    return {
        "made_by": f"python -m benchmarks.train --variant {recipe.variant}",
        "class": CLASSES[recipe.variant][0].__name__,
        "parameters": sum(value.numel() for value in trained.model.parameters()),
        "weights": str(STORED).removeprefix("torch."),
        "held_out_bits_per_byte": {
            "before_rounding": round(stated.full, 5),
            "as_stored": round(stated.stored, 5),
            f"as_stored_{SLICE}_windows": round(stated.of_slice, 5),
            "windows": f"{MEASURED} of {recipe.sizes.context} bytes",
        },
        "zeros_before_last_projection": [round(share, 4) for share in stated.zeros],
        "text": {
            "digest": text.digest,
            "python": platform.python_version(),
            "training_bytes": len(text.training),
            "held_out_bytes": len(text.held_out),
        },
        "recipe": recipe.as_data(),
        "made_with": {
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "seconds": round(trained.seconds),
        },
        "licence": LICENCE,
    }
