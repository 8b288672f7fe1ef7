"""What is left of a decoder's quality: bits per byte of held-out text, beside dense."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.timing import bootstrap_interval

Predict = Callable[[Tensor], Tensor]
"""Ids int64 [batch, tokens] -> logits [batch, read, vocabulary] of the last `read` positions."""
BATCH = 4


@dataclass(frozen=True)
class Perplexity:
    """Bits per byte of a variant beside dense, on the same bytes of the same windows.

    `difference` is the variant's minus dense's, `low` and `high` its paired 95 % interval over
    windows. `read` bytes were predicted at the end of each window.
    """

    windows: int
    read: int
    dense: float
    variant: float
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        change = f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.variant:.4f} bits per byte, {change} to dense"


@torch.no_grad()
def window_bits(
    predict: Predict, windows: Tensor, *, read: int | None = None, batch: int = BATCH
) -> Tensor:
    """Mean bits per byte of each window's last `read` bytes, float64 [count].

    `windows` are ids [count, tokens + 1]. `predict` sees all but the last and returns logits of the
    last `read` positions or more; without `read`, of all tokens. So what answers for one position
    alone (a prefill that was shortened), or for a few (decoding with a shortened cache), is judged
    on those.

    Raises:
        ValueError: `predict` returned fewer positions than are read, or `read` is not within 1 and
            the number of tokens.
    """
    tokens = windows.shape[1] - 1
    read = tokens if read is None else read
    if not 1 <= read <= tokens:
        raise ValueError(f"read = {read}: windows of {tokens} tokens allow 1 to {tokens}")
    rows: list[Tensor] = []
    for part in windows.split(batch):
        logits = predict(part[:, :-1])
        if logits.shape[1] < read:
            raise ValueError(
                f"logits of {logits.shape[1]} positions came back, {read} are to be read: "
                "give `read`, or keep the logits of more positions"
            )
        asked = logits[:, -read:].double().flatten(0, 1)
        nats = cross_entropy(asked, part[:, -read:].flatten(), reduction="none")
        rows.append(nats.view(len(part), read).mean(dim=1) / math.log(2))
    return torch.cat(rows)


def compare(
    dense: Predict,
    variant: Predict,
    windows: Tensor,
    *,
    read: int | None = None,
    batch: int = BATCH,
    seed: int = 0,
) -> Perplexity:
    """Perplexity of `variant` beside `dense`; the arguments are those of `window_bits`.

    Windows count as independent draws; neighbours in one module are not quite.
    """
    both = [window_bits(predict, windows, read=read, batch=batch) for predict in (dense, variant)]
    change = both[1] - both[0]
    low, high = bootstrap_interval(change.numpy(), np.mean, seed=seed)
    return Perplexity(
        windows=len(windows),
        read=windows.shape[1] - 1 if read is None else read,
        dense=float(both[0].mean()),
        variant=float(both[1].mean()),
        difference=float(change.mean()),
        low=low,
        high=high,
    )
