"""Kept values as text: whole numbers between blanks, a run of n > 1 zeros written as -n.

A file of a large model is read in seconds because each row of a table is one scalar to YAML.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor

from tokenpass.statistics.histogram import BINS, Histogram

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Shown beside a histogram for people to read; never read back."""

MOST_CHANNELS = 1 << 24

Wrong = Callable[..., NoReturn]
"""Raises an error at the place of some keys below the value: `wrong(text, "counts", 3)`."""

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Form(Generic[Kept]):
    """How one kind of value stands in a file: as lines of a YAML mapping, and read from it."""

    lines: Callable[[Kept], Iterator[str]]
    read: Callable[[Mapping[str, Any], Wrong], Kept]


def histogram_lines(histogram: Histogram) -> Iterator[str]:
    """A histogram's channels, quantiles for people, and the bins that hold something."""
    used = histogram.counts.any(1).nonzero().flatten()
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, -1)
    pooled = histogram.pooled()
    shown = ", ".join(f"{q:.0%} {float(pooled.quantile(q)):.3g}" for q in QUANTILES)
    yield f"channels: {histogram.channels}"
    yield f"quantiles: '{shown}'"
    yield f"first_bin: {first}"
    if histogram.not_finite.any():
        yield f"not_finite: '{row_text(histogram.not_finite)}'"
    yield "counts:" if last >= first else "counts: []"
    for row in histogram.counts[first : last + 1]:
        yield f"- '{row_text(row)}'"


def read_histogram(data: Mapping[str, Any], wrong: Wrong) -> Histogram:
    """The histogram of a mapping that `histogram_lines` wrote."""
    known(data, ("channels", "quantiles", "first_bin", "not_finite", "counts"), wrong)
    channels = whole_number(data, "channels", MOST_CHANNELS, wrong)
    first = whole_number(data, "first_bin", BINS, wrong)
    rows = data.get("counts")
    if not isinstance(rows, list) or first + len(rows) > BINS:
        wrong(f"expected a list of at most {BINS} rows in all", "counts")
    counts = torch.zeros(BINS, channels, dtype=torch.int64)
    for at, text in enumerate(rows):
        counts[first + at] = read_row(text, channels, wrong, "counts", at)
    not_finite = torch.zeros(channels, dtype=torch.int64)
    if "not_finite" in data:
        not_finite = read_row(data["not_finite"], channels, wrong, "not_finite")
    if (counts.sum(0) + not_finite).unique().numel() > 1:
        wrong("expected as many entries in every channel: a count is not the one written", "counts")
    return Histogram(counts, not_finite)


def count_lines(counts: Tensor) -> Iterator[str]:
    """A count for each channel."""
    yield f"channels: {counts.numel()}"
    yield f"counts: '{row_text(counts)}'"


def read_counts(data: Mapping[str, Any], wrong: Wrong) -> Tensor:
    """The counts of a mapping that `count_lines` wrote."""
    known(data, ("channels", "counts"), wrong)
    channels = whole_number(data, "channels", MOST_CHANNELS, wrong)
    return read_row(data.get("counts"), channels, wrong, "counts")


HISTOGRAM: Form[Histogram] = Form(histogram_lines, read_histogram)
COUNTS: Form[Tensor] = Form(count_lines, read_counts)


def row_text(row: Tensor) -> str:
    """Counts `[channels]` as text."""
    values, lengths = torch.unique_consecutive(row, return_counts=True)
    runs = (values == 0) & (lengths > 1)
    repeated = torch.where(values == 0, 1, lengths)
    return " ".join(
        map(str, torch.where(runs, -lengths, values).repeat_interleave(repeated).tolist())
    )


def read_row(text: Any, channels: int, wrong: Wrong, *at: str | int) -> Tensor:
    """Counts `[channels]` of a text that `row_text` wrote."""
    if not isinstance(text, str):
        wrong(f"expected numbers in quotes, got {text!r:.40}", *at)
    try:  # json's parser is the fastest at hand for numbers
        held = array("q", json.loads(f"[{text.replace(' ', ',')}]"))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        wrong(f"expected whole numbers between blanks: {error}", *at)
    if len(held) > channels:
        wrong(f"expected {channels} numbers, got {len(held)}", *at)
    numbers = torch.frombuffer(held, dtype=torch.int64) if held else torch.zeros(0).long()
    lengths = torch.where(numbers < 0, -numbers.clamp(min=-channels - 1), 1)
    if int(lengths.sum()) != channels:
        wrong(f"expected {channels} numbers, got {int(lengths.sum())}", *at)
    return numbers.clamp(min=0).repeat_interleave(lengths)


def known(data: Mapping[str, Any], keys: tuple[str, ...], wrong: Wrong) -> None:
    """Refuse keys that nothing reads."""
    for key in data:
        if key not in keys:
            wrong(f"unknown key; expected {', '.join(keys)}", key)


def whole_number(data: Mapping[str, Any], key: str, most: int, wrong: Wrong) -> int:
    """A number from 0 to `most`."""
    value = data.get(key)
    if type(value) is not int or not 0 <= value <= most:
        wrong(f"expected a whole number from 0 to {most}, got {value!r:.40}", key)
    return value
