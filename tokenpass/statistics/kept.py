"""The statistics that calibration keeps of a projection's input; the next one is one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenpass.statistics.histogram import Histogram
from tokenpass.statistics.texts import COUNTS, HISTOGRAM, Form

CORE_SHARE = 0.4
"""The share of a token's active neurons that count as its core (CoreInfer, 2410.18311)."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What one call of a projection read, padded rows left out.

    `hidden`: what it multiplies, `[rows, entries]`. `gate` and `up`: its factors where it is a
    product with another projection's result, shaped alike. `neurons`: whether an activation
    function gave it, so that its entries are an MLP's neurons.
    """

    hidden: Tensor
    gate: Tensor | None = None
    up: Tensor | None = None
    neurons: bool = False


@dataclass(frozen=True)
class Statistic:
    """One statistic: what it is `of` one call, and its `form` in files.

    `name` is a field of `SiteStatistics` and the key in files. Values of two calls are added.
    `of` gives None where a projection has no such thing.
    """

    name: str
    of: Callable[[Observed], Any]
    form: Form[Any]


def magnitude(observed: Observed) -> Histogram:
    """How large the entries are that a projection multiplies."""
    return Histogram.of(observed.hidden)


def gate(observed: Observed) -> Histogram | None:
    """How large the gate is (CATS, 2404.08763)."""
    return None if observed.gate is None else Histogram.of(observed.gate)


def up(observed: Observed) -> Histogram | None:
    """How large what the gate multiplies is (CHESS, 2409.01366)."""
    return None if observed.up is None else Histogram.of(observed.up)


def core(observed: Observed) -> Tensor | None:
    """How often each neuron is among the largest 40 % of its token's active ones, `[entries]`.

    Steps 1 and 2 of CoreInfer (2410.18311) and CoreMatching (2505.19235), by magnitude: the papers
    take positive values, which behind a relu is the same; a gated product is as active where it is
    negative, and sets by positive values then lose to random ones. Of equal values the first
    entries count.
    """
    if not observed.neurons:
        return None
    hidden = observed.hidden.detach().float()
    hidden = torch.where(hidden.isfinite(), hidden, 0.0)
    counts = torch.zeros(hidden.shape[1], dtype=torch.int64, device=hidden.device)
    for rows in hidden.split(256):
        rows = rows.abs()
        kept = ((rows > 0).sum(1) * CORE_SHARE).floor()
        order = rows.argsort(dim=1, descending=True, stable=True)
        first = torch.arange(rows.shape[1], device=rows.device) < kept[:, None]
        counts += torch.bincount(order[first], minlength=rows.shape[1])
    return counts.cpu()


STATISTICS: tuple[Statistic, ...] = (
    Statistic("magnitude", magnitude, HISTOGRAM),
    Statistic("gate", gate, HISTOGRAM),
    Statistic("up", up, HISTOGRAM),
    Statistic("core", core, COUNTS),
)
