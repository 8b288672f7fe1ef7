"""Recipes of random small transformers: plain data, one from each seed.

A recipe is made `consistent` before it is built, so that any change of one field (as shrinking
makes them) is a recipe again: what an attention cannot do is turned off.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Spelling = Literal["fused", "written", "einsum", "bmm", "grouped", "repeated", "torch"]
Order = Literal["pre", "post", "parallel"]
Position = Literal["none", "learnt", "rotary", "alibi", "table"]
Causal = Literal["none", "flag", "mask"]
Padding = Literal["none", "bool", "additive"]
Pooling = Literal["mean", "max", "first", "last", "all", "last_real", "masked_mean"]
Writes = Literal["none", "add", "channels", "row"]
Second = Literal["none", "pooled", "tokens"]
Edits = Literal["merge", "keys", "row", "even", "random", "mixed", "budget"]


@dataclass(frozen=True)
class Recipe:
    """One model and the call that it is captured with; the simplest one by default.

    `window`: a query sees keys less than this far away, 0: all. `skip`: the first block's output
    is added to the last one's. `writes`: what a block writes in place: the residual sum, channels
    through a view, or a token through a view. `edits`: which ones are pinned, or that the planner
    chooses them for half the cost; `keep`: share of the tokens that a pinned edit keeps. `dynamo`:
    Dynamo makes the graph, which takes most of a check's time, instead of a trace of the call.
    """

    seed: int = 0
    width: int = 16
    heads: int = 2
    layers: int = 1
    tokens: int = 8
    batch: int = 1
    spelling: Spelling = "fused"
    order: Order = "pre"
    rms: bool = False
    gated: bool = False
    position: Position = "none"
    causal: Causal = "none"
    window: int = 0
    padding: Padding = "none"
    padded_left: bool = False
    pooling: Pooling = "mean"
    class_token: bool = False
    convolution: bool = False
    writes: Writes = "none"
    skip: bool = False
    tokens_first: bool = False
    flat: bool = False
    second: Second = "none"
    edits: Edits = "merge"
    keep: float = 0.7
    dynamo: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Recipe:
        """The recipe of `to_dict`; raises `TypeError` for fields that there are not."""
        return Recipe(**data)


def recipe(seed: int) -> Recipe:
    """The recipe of a seed: half of the features are off on average."""
    draw = random.Random(seed)

    def sometimes(share: float = 0.25) -> bool:
        return draw.random() < share

    def often_first(kind: Any, share: float = 0.5) -> Any:
        first, *others = get_args(kind)
        return draw.choice(others) if sometimes(share) else first

    width, heads = draw.choice([(16, 2), (16, 4), (24, 3), (24, 2), (32, 4)])
    made = Recipe(
        seed=seed,
        width=width,
        heads=heads,
        layers=draw.choice([2, 2, 2, 3, 4]),
        tokens=draw.randint(8, 24),
        batch=draw.randint(1, 3),
        spelling=draw.choice(get_args(Spelling)),
        order=often_first(Order),
        rms=sometimes(),
        gated=sometimes(0.4),
        position=draw.choice(get_args(Position)),
        causal=often_first(Causal, 0.35),
        window=draw.choice([2, 4]) if sometimes(0.15) else 0,
        padding=often_first(Padding, 0.3),
        padded_left=sometimes(0.3),
        pooling=draw.choice(get_args(Pooling)),
        class_token=sometimes(),
        convolution=sometimes(0.15),
        writes=often_first(Writes, 0.25),
        skip=sometimes(0.15),
        tokens_first=sometimes(),
        flat=sometimes(),
        second=often_first(Second, 0.25),
        # planning takes most of the time
        edits="budget" if sometimes(0.1) else draw.choice(get_args(Edits)[:-1]),
        keep=draw.choice([0.55, 0.6, 0.7, 0.9]),
        dynamo=sometimes(0.15),
    )
    made = coinciding(made, draw) if sometimes() else made
    return consistent(made)


def coinciding(made: Recipe, draw: random.Random) -> Recipe:
    """Two sizes that are the same number."""
    kind = draw.choice(["width", "heads", "head_dim", "batch", "input"])
    if kind == "width":
        return replace(made, tokens=made.width if made.width <= 24 else 16, width=16, heads=2)
    if kind == "heads":
        return replace(made, width=16, heads=8, tokens=8)
    if kind == "head_dim":
        return replace(made, width=16, heads=2, tokens=8)
    if kind == "batch":
        return replace(made, batch=8, tokens=8)
    return replace(made, batch=made.heads)


def consistent(made: Recipe) -> Recipe:
    """The recipe without what its other fields rule out."""
    if made.spelling == "torch":
        places = made.position if made.position in ("none", "learnt") else "learnt"
        causal = "mask" if made.causal == "flag" else made.causal
        made = replace(made, position=places, causal=causal, flat=False)
    if made.causal == "flag":
        alone = made.padding == "none" and not made.window
        alone = alone and made.position not in ("alibi", "table")
        if made.spelling not in ("fused", "grouped", "repeated") or not alone:
            made = replace(made, causal="mask")
    if made.padding == "none":
        pooling = "mean" if made.pooling == "masked_mean" else made.pooling
        made = replace(made, padded_left=False, pooling=pooling)
    if made.heads % 2 and made.spelling in ("grouped", "repeated"):
        made = replace(made, heads=2)
    return made
