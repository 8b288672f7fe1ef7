"""How large values are, channel by channel: counts in bins that double in width every octave.

A float32's exponent and two bits of its mantissa are its bin: four bins an octave, the same for
every model and dtype, so that histograms add up in any order and nothing is tuned to data. TEAL
(2408.14690) takes quantiles of x, supposed symmetric around 0; |x| needs no such thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Self

import torch
from torch import Tensor

from tokenpass.errors import InternalError

PER_OCTAVE = 4
LOWEST, HIGHEST = -24, 16
"""Exponents of 2 between which magnitudes are told apart."""

BINS = 1 + (HIGHEST - LOWEST) * PER_OCTAVE
"""Bin 0 holds zeros and what is below 2^LOWEST; the last one holds what is above 2^HIGHEST too."""

_MANTISSA, _BIAS = 23, 127
_SHIFT = _MANTISSA - 2
_FIRST = (_BIAS + LOWEST) * PER_OCTAVE - 1
_INFINITY = 0x7F800000
_AT_ONCE = 1 << 24


@cache
def _edges() -> Tensor:
    """`[BINS + 1]`: bin k holds edges[k] <= |x| < edges[k + 1]."""
    steps = torch.arange(BINS, dtype=torch.float64)
    whole = torch.floor(steps / PER_OCTAVE)
    edges = torch.exp2(LOWEST + whole) * (1 + steps / PER_OCTAVE - whole)
    return torch.cat([torch.zeros(1, dtype=torch.float64), edges])


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of magnitudes, int64 `[BINS, channels]`, and of values that are no finite number.

    Within a bin the logarithm is taken to be spread evenly: a share, an energy or a quantile is
    right within the width of a bin (at most a fourth of the magnitude), most of which averages out
    over many channels. All that is said is of the finite values; a channel without any has zeros.
    """

    counts: Tensor
    not_finite: Tensor

    def __post_init__(self) -> None:
        counts, other = self.counts, self.not_finite
        if counts.dim() != 2 or counts.shape[0] != BINS or counts.dtype != torch.int64:
            raise InternalError(
                f"a histogram's counts are int64 [{BINS}, channels]: {counts.shape}"
            )
        if other.shape != counts.shape[1:] or other.dtype != torch.int64:
            raise InternalError(f"not_finite is int64 [channels]: {other.shape} {other.dtype}")

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Of values `[rows, channels]` in any floating dtype, on any device; kept on the CPU."""
        if values.dim() != 2 or not values.is_floating_point():
            raise InternalError(f"a histogram is of floats [rows, channels]: {values.shape}")
        channels = values.shape[1]
        total = torch.zeros((BINS + 1) * channels, dtype=torch.int64, device=values.device)
        for part in values.split(max(1, _AT_ONCE // max(1, channels))):
            total += _counted(part, channels)
        table = total.view(BINS + 1, channels).cpu()
        return cls(table[:BINS].contiguous(), table[BINS].clone())

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Of no rows."""
        return cls.of(torch.zeros(0, channels))

    def __add__(self, other: Self) -> Self:
        if self.channels != other.channels:
            raise InternalError(f"histograms of {self.channels} and of {other.channels} channels")
        return type(self)(self.counts + other.counts, self.not_finite + other.not_finite)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Histogram)
            and torch.equal(self.counts, other.counts)
            and torch.equal(self.not_finite, other.not_finite)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return self.counts.shape[1]

    @property
    def rows(self) -> int:
        """How many rows were counted, those with values that are not finite among them."""
        if not self.channels:
            return 0
        return int(self.counts[:, 0].sum() + self.not_finite[0])

    def pooled(self) -> Self:
        """All channels as one."""
        counts = self.counts.sum(1, keepdim=True)
        return type(self)(counts, self.not_finite.sum(0, keepdim=True))

    def share_below(self, threshold: float | Tensor) -> Tensor:
        """`[channels]`: the share of entries with |x| <= threshold, `[1 or channels]`.

        Zeros, and what is below 2^LOWEST, are below every threshold from 0.
        """
        return self.shares()(threshold)

    def shares(self) -> Callable[[float | Tensor], Tensor]:
        """`share_below` for many thresholds: the counts are summed once."""
        sums = torch.nn.functional.pad(self.counts.cumsum(0).double(), (0, 0, 1, 0))
        entries = self._entries()

        def below(threshold: float | Tensor) -> Tensor:
            at, part = self._place(threshold)
            before, through = sums.gather(0, torch.stack([at, at + 1]))
            return (before + (through - before) * part) / entries

        return below

    def quantile(self, share: float | Tensor) -> Tensor:
        """`[channels]`: the least magnitude that a share, `[1 or channels]`, is not above."""
        wanted = _each(share, self.channels).clamp(0, 1) * self._entries()
        sums = self.counts.cumsum(0).double()
        at = (sums < wanted).sum(0).clamp(max=BINS - 1)
        inside = self.counts.gather(0, at[None])[0]
        before = sums.gather(0, at[None])[0] - inside
        part = ((wanted - before) / inside.clamp(min=1)).clamp(0, 1)
        edges = _edges()
        low, high = edges[at], edges[at + 1]
        found = low * (high / low.clamp(min=edges[1])) ** part
        empty = self.counts.sum(0) == 0
        return torch.where((at == 0) | empty, torch.zeros_like(found), found)

    def energy(self) -> Tensor:
        """`[channels]`: the mean of x^2."""
        return self._moment(2) / self._entries()

    def energy_below(self, threshold: float | Tensor) -> Tensor:
        """`[channels]`: the mean over all entries of x^2 where |x| <= threshold, else 0."""
        at, part = self._place(threshold)
        edges = _edges()
        each = _bin_moments(2)
        below = self._before(self.counts * each[:, None], at)
        low, high = edges[at], edges[at + 1]
        reached = low * (high / low.clamp(min=edges[1])) ** part
        # of x^2 where log x is even between low and high: (t^2 - low^2) / 2 / log(high / low)
        width = torch.log(high / low.clamp(min=edges[1]))
        inside = torch.where(at == 0, 0.0, (reached**2 - low**2) / (2 * width.clamp(min=1e-9)))
        return (below + self.counts.gather(0, at[None])[0] * inside) / self._entries()

    def mean(self) -> Tensor:
        """`[channels]`: the mean of |x|."""
        return self._moment(1) / self._entries()

    def _entries(self) -> Tensor:
        """`[channels]`: finite entries, at least 1."""
        return self.counts.sum(0).clamp(min=1).double()

    def _moment(self, power: int) -> Tensor:
        return (self.counts * _bin_moments(power)[:, None]).sum(0)

    def _place(self, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
        """The bin of each channel's threshold, and the part of that bin that lies below it."""
        threshold = _each(threshold, self.channels)
        edges = _edges()
        at = (torch.searchsorted(edges, threshold, right=True) - 1).clamp(0, BINS - 1)
        low, high = edges[at].clamp(min=edges[1]), edges[at + 1]
        part = torch.log(threshold.clamp(min=edges[1]) / low) / torch.log(high / low)
        part = torch.where(at == 0, torch.ones_like(part), part.clamp(0, 1))
        return at, torch.where(threshold < 0, torch.zeros_like(part), part)

    def _before(self, amounts: Tensor, at: Tensor) -> Tensor:
        """`[channels]`: amounts `[BINS, channels]` summed over the bins before `at`."""
        earlier = torch.arange(BINS)[:, None] < at
        return torch.where(earlier, amounts, torch.zeros_like(amounts)).sum(0)


def _counted(values: Tensor, channels: int) -> Tensor:
    """`[(BINS + 1) * channels]`: counts by bin and channel, the last bin for what is not finite."""
    bits = values.detach().float().contiguous().view(torch.int32) & 0x7FFFFFFF
    at = ((bits >> _SHIFT) - _FIRST).clamp(0, BINS - 1)
    at = torch.where(bits >= _INFINITY, BINS, at).long()
    at = at * channels + torch.arange(channels, device=values.device)
    return torch.bincount(at.flatten(), minlength=(BINS + 1) * channels)


@cache
def _bin_moments(power: int) -> Tensor:
    """`[BINS]`: the mean of |x|^power in each bin; what is in bin 0 counts as 0."""
    edges = _edges()
    low, high = edges[1:-1], edges[2:]
    means = (high**power - low**power) / (power * torch.log(high / low))
    return torch.cat([torch.zeros(1, dtype=torch.float64), means])


def _each(value: float | Tensor, channels: int) -> Tensor:
    """`[channels]` in float64 of a number, `[1]` or `[channels]`."""
    value = torch.as_tensor(value, dtype=torch.float64).cpu().reshape(-1)
    return value.expand(channels).contiguous() if value.numel() == 1 else value
