"""`Reduction`: how a token stream got shorter, the one currency between passes and the rewriter.

    x_short = reduce(x_long)          [.., tokens, ..] -> [.., count, ..]
    x_long  = restore(x_short)        a token takes its representative's value, or the value it had
                                      when it left

All index tensors are `[batch, *]` (or `[1, *]` where every sample agrees) and refer to the parent's
tokens; `position` refers to the stream's full length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.fx import traceback

from tokenpass.errors import InternalError
from tokenpass.graph.axis import Axis, Label, Size, Unalignable, find_axis
from tokenpass.graph.call import is_one
from tokenpass.graph.demand_lattice import Position
from tokenpass.shapes import Bool, Float, Int

Place = tuple[int, int]
Shape = Callable[[Label], list[Size]]


@dataclass(frozen=True, eq=False)
class Gather:
    """Keep some tokens: `index[b, j]` is the place of the j-th kept one."""

    index: Int[torch.Tensor, "batch count"]


@dataclass(frozen=True, eq=False)
class Slice:
    """Keep a run of tokens: `start`, and as many as the reduction counts."""

    start: Size


@dataclass(frozen=True, eq=False)
class Segment:
    """Merge tokens: token i joins `segment[b, i]`, with share `weights[b, i]` in its mean.

    `kept[b, j]` is the token that stays in place j; `moved[b, r]` are the tokens that join one.
    """

    segment: Int[torch.Tensor, "batch tokens"]
    weights: Float[torch.Tensor, "batch tokens"]
    kept: Int[torch.Tensor, "batch count"]
    moved: Int[torch.Tensor, "batch moved"]


@dataclass(frozen=True, eq=False)
class Dense:
    """Any linear combination: `x_short = weights @ x_long`, `x_long = back @ x_short`."""

    weights: Float[torch.Tensor, "batch count tokens"]
    back: Float[torch.Tensor, "batch tokens count"]


@dataclass(frozen=True, eq=False)
class Reduction:
    """How one axis got shorter.

    `latest()[b, j]`: the parent's token that stands for token j (the latest member of a merge);
    `representative[b, i]`: the token that stands for the parent's token i. `sizes`: full-length
    tokens in each one (None: one each), `logs` their logarithms; `whole`: those that are padding
    counted too, where some are, as a mean over all tokens counts them. `protected`: places of the
    stream's protected positions, where known already. `saved`: the stream's value when tokens left,
    into which survivors are written back. `padding`: tokens that are padding. `ordered`: positions
    rise. `read`: the full-length positions that are all that is left (an exact cut). `owner`: the
    edit.
    """

    axis: Axis
    batch: Axis | None
    full: Size
    count: Size
    reduce: Gather | Slice | Segment | Dense
    parent: Reduction | None = None
    latest: Callable[[], Int[torch.Tensor, "batch count"]] | None = None
    representative: Int[torch.Tensor, "batch tokens"] | None = None
    sizes: Float[torch.Tensor, "batch count"] | None = None
    logs: Float[torch.Tensor, "batch count"] | None = None
    whole: Callable[[], Float[torch.Tensor, "batch count"]] | None = None
    protected: Int[torch.Tensor, "batch places"] | None = None
    saved: Any = None
    padding: Bool[torch.Tensor, "batch count"] | None = None
    ordered: bool = True
    read: tuple[Position, ...] | None = None
    owner: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    memo: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def position(self) -> Int[torch.Tensor, "batch count"]:
        """Full-length position of every token (a merged one stands at its latest member's)."""
        with owned_by(self.owner):
            local = self.local_index()
            if self.parent is None:
                return local
            above = self.parent.position
            rows = max_rows(above, local)
            return torch.gather(above.expand(rows, -1), 1, local.expand(rows, -1))

    @property
    def per_sample(self) -> bool:
        """Whether samples may have lost different tokens."""
        how = self.reduce
        if isinstance(how, Gather):
            own = not is_one(how.index.shape[0])
        elif isinstance(how, Slice):
            own = False
        else:
            own = not is_one(how.weights.shape[0])
        return own or (self.parent is not None and self.parent.per_sample)

    def local_index(self) -> Int[torch.Tensor, "batch count"]:
        """The parent's token behind each token; a dense reduction has none."""
        if isinstance(self.reduce, Gather):
            return self.reduce.index
        if isinstance(self.reduce, Slice):
            start = self.reduce.start
            return torch.arange(start, start + self.count, device=self.device)[None]
        if self.latest is None:
            raise DenseIndexRefused("a dense reduction has no index for a side operand")
        if "latest" not in self.memo:
            with owned_by(self.owner):
                self.memo["latest"] = self.latest()
        return self.memo["latest"]

    def log_sizes(self, dtype: torch.dtype) -> Float[torch.Tensor, "batch count"]:
        """Logarithm of the sizes; -inf for padding, which counts nothing."""
        key = ("log", dtype)
        if self.sizes is None:
            raise InternalError("log sizes of a reduction that keeps every token as it is")
        if key not in self.memo:
            with owned_by(self.owner):
                logs = torch.log(self.sizes) if self.logs is None else self.logs
                self.memo[key] = logs.to(dtype)
        return self.memo[key]

    def add_log_sizes(
        self, value: torch.Tensor, label: Label, at: Place, shape: Shape
    ) -> torch.Tensor:
        """Scores plus log sizes along one factor."""
        with owned_by(self.owner):
            return value + self.spread(self.log_sizes(value.dtype), label, at, shape)

    def weight(self, value: torch.Tensor, label: Label, at: Place, shape: Shape) -> torch.Tensor:
        """Values times sizes along one factor (unchanged if every token counts once).

        Sums over tokens count padding like any other token.
        """
        if self.sizes is None:
            return value
        dtype = torch.int64 if value.dtype == torch.bool else value.dtype  # True counts its size
        with owned_by(self.owner):
            return value * self.spread(self.all_sizes().to(dtype), label, at, shape)

    def all_sizes(self) -> Float[torch.Tensor, "batch count"]:
        """Full-length tokens in each one, padding among them."""
        if self.sizes is None:
            raise InternalError("sizes of a reduction that keeps every token as it is")
        if self.whole is None:
            return self.sizes
        if "whole" not in self.memo:
            self.memo["whole"] = self.whole()
        return self.memo["whole"]

    def spread(self, rows: torch.Tensor, label: Label, at: Place, shape: Shape) -> torch.Tensor:
        """`[batch or 1, count]` shaped to broadcast against a value along its token factor."""
        return spread_rows(rows, label, at, self.batch, shape)

    def steps_from(self, ancestor: Reduction | None) -> list[Reduction]:
        """The reductions from an ancestor (exclusive) to this one, in order."""
        steps: list[Reduction] = []
        step: Reduction | None = self
        while step is not None and step is not ancestor:
            steps.append(step)
            step = step.parent
        if step is not ancestor:
            raise Unalignable("a value was shortened in another way than its partner")
        return steps[::-1]

    def slots(self, positions: tuple[Position, ...]) -> list[int] | None:
        """Where an exact cut holds these positions; None if it is lossy or lacks one."""
        if self.read is None or any(p not in self.read for p in positions):
            return None
        return [self.read.index(p) for p in positions]


class DenseIndexRefused(Unalignable):
    """An operand needs an index, and the reduction is dense."""


def sums_in(value: torch.Tensor) -> torch.dtype:
    """The dtype that sizes, shares and sums over merged tokens have: at least float32."""
    return torch.promote_types(value.dtype, torch.float32)


def spread_rows(
    rows: torch.Tensor, label: Label, at: Place, batch: Axis | None, shape: Shape
) -> torch.Tensor:
    """`[batch or 1, count]` shaped to broadcast against a value, along the token factor at `at`.

    Dimensions that hold neither tokens nor samples have size 1; one that holds other factors too
    (batch x heads) is filled.
    """
    apart = not is_one(rows.shape[0])
    place = None if batch is None or not apart else find_axis(label, batch)
    if apart and place is None:
        raise Unalignable("per-sample tokens meet a value without a batch dimension")
    if place is not None and place > at:
        rows = rows.transpose(0, 1)
    view: list[Size] = []
    filled: list[Size] = []
    out: list[Size] = []
    for dim, group in enumerate(label):
        if dim not in (at[0], place[0] if place else None):
            for sizes in (view, filled, out):
                sizes.append(1)
            continue
        total: Size = 1
        for entry, factor in enumerate(group):
            known = (dim, entry) in (at, place)
            size = shape(((factor,),))[0]
            view.append(size if known else 1)
            filled.append(size)
            total = total * size
        out.append(total)
    rows = rows.reshape(view)
    return rows if len(view) == len(out) else rows.expand(filled).reshape(out)


def max_rows(*tensors: torch.Tensor) -> Size:
    """The batch size of index tensors of which some may be shared by all samples."""
    rows: Size = 1
    for tensor in tensors:
        if not is_one(tensor.shape[0]):
            rows = tensor.shape[0]
    return rows


@contextmanager
def owned_by(edit: int | None) -> Iterator[None]:
    """Nodes traced inside belong to an edit (their cost goes away with it)."""
    if edit is None:
        yield
        return
    meta = traceback.current_meta
    before = meta.get("custom")
    meta["custom"] = {**(before or {}), "tokenpass_edit": edit}
    try:
        yield
    finally:
        if before is None:
            meta.pop("custom", None)
        else:
            meta["custom"] = before
