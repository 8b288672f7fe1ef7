"""Signals: what scorers and matchers may read at a site, computed only if a parameter names it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import Axis, Label, Unalignable, find_axis
from tokenpass.graph.call import is_one
from tokenpass.graph.causality import HIDDEN
from tokenpass.graph.demand_lattice import Position
from tokenpass.graph.sites import Site, Stream
from tokenpass.ops.attention_row import attention_row
from tokenpass.passes.base import Candidate
from tokenpass.passes.token_reduction.span import covered, outside, read_inside
from tokenpass.ranks import heads_of_all_ranks
from tokenpass.rewrite.gather import open_factors
from tokenpass.rewrite.read_cut import place_among
from tokenpass.rewrite.reduction import Reduction, Segment, max_rows
from tokenpass.rewrite.replay import Replay
from tokenpass.rewrite.restoring import ReplayRefused
from tokenpass.rewrite.rewriter import hinted

DATA_SIGNALS = frozenset({"keys", "attention_row", "hidden"})


def looks_at_data(policy: Callable[..., Any]) -> bool:
    """Whether a policy reads values, so that later tokens could change what happens to earlier."""
    return bool(DATA_SIGNALS & set(inspect.signature(policy).parameters))


@dataclass(frozen=True, eq=False)
class SiteSignals:
    """The stream at a site while the graph is replayed; `parent` is how short it is already."""

    replay: Replay
    candidate: Candidate
    parent: Reduction | None
    count: Any
    seed: int

    @property
    def site(self) -> Site:
        """Where it is."""
        return self.candidate.site

    @property
    def stream(self) -> Stream:
        """Whose tokens they are."""
        return self.candidate.stream

    @property
    def device(self) -> torch.device:
        """Where the stream lives."""
        return self.replay.env[self.site.node].device

    @property
    def tokens(self) -> Any:
        """Tokens coming in."""
        if self.parent is not None:
            return self.parent.count
        return self.replay.size(self.stream.axis.size)

    @property
    def inside(self) -> Any:
        """Tokens coming in that may leave: those of the span, if there is one."""
        span = self.candidate.span
        if not span:
            return self.tokens
        return self.tokens - self.replay.size(self.stream.axis.size) + covered(span)

    def fewest(self, leaving: Any) -> Any:
        """Tokens that stay if so many leave, apart from those that the outputs read."""
        read = read_inside(self.stream, self.candidate.span)
        return self.tokens - torch.sym_max(0, leaving - read)

    def check_level(self, leaving: Any, owner: int) -> None:
        """Refuse a count above the tokens that come in, or one for which more must be `leaving`.

        Judged at the example call's sizes, so that no guard is added.
        """
        least = hinted(self.fewest(leaving))
        count, tokens = hinted(self.count), hinted(self.tokens)
        if not max(least, 1) <= count <= tokens:
            because = f"level {count} is not between {max(least, 1)} and the {tokens} tokens there"
            raise ReplayRefused(Rejection("level_out_of_range", self.site.name, because), owner)

    @property
    def batch(self) -> Any:
        """Samples (1 where the stream has no batch axis)."""
        return 1 if self.site.batch is None else self.replay.size(self.site.batch.size)

    def read(self, policy: Callable[..., Any]) -> Any:
        """Call a policy with the signals that its parameters name."""
        names = inspect.signature(policy).parameters
        return policy(**{name: getattr(self, name) for name in names})

    @property
    def keys(self) -> torch.Tensor:
        """Keys of the attention before the site, `[batch, heads, tokens, width]`, of all ranks."""
        return heads_of_all_ranks(self.own_keys, self.site.region.groups)

    @property
    def own_keys(self) -> torch.Tensor:
        """Keys of the heads that this rank has.

        A token that was merged since has its representative's.
        """
        region = self.site.region
        keys, cut = self.per_head(region.key, region.key_axis, region.key_transposed)
        for step in self.since(cut):
            index = step.local_index()[:, None, :, None]
            rows = max_rows(index, keys)
            keys = keys.expand(rows, -1, -1, -1)
            index = index.expand(rows, keys.shape[1], -1, keys.shape[3])
            keys = torch.gather(keys, 2, index)
        return keys

    @property
    def position(self) -> torch.Tensor:
        """Full-length positions, `[batch or 1, tokens]`."""
        if self.parent is not None:
            return self.parent.position
        return torch.arange(self.tokens, device=self.device)[None]

    @property
    def attention_row(self) -> torch.Tensor:
        """Attention paid by the first position that the outputs read, `[batch, heads, tokens]`."""
        return heads_of_all_ranks(self.own_row, self.site.region.groups)

    @property
    def own_row(self) -> torch.Tensor:
        """The same of the heads that this rank has."""
        region = self.site.region
        if region.probabilities is not None:
            rows, cut = self.per_head(region.probabilities, region.query_axis)
            row = self.row_at(rows, self.places(self.read_first(), cut))[:, :, 0]
            return reduce(sum_members, self.since(cut), row)
        query, cut = self.per_head(region.query, region.query_axis)
        query = self.row_at(query, self.places(self.read_first(), cut))
        keys, bias = self.own_keys, self.row_bias()
        if keys.dtype != query.dtype:
            query, keys = query.float(), keys.float()
        samples = max_rows(query, keys, *(() if bias is None else (bias,)))
        scale = region.scale if region.scale is not None else 1 / math.sqrt(query.shape[-1])
        return attention_row(
            query.expand(samples, -1, -1, -1), keys.expand(samples, -1, -1, -1), bias, scale=scale
        )

    def row_bias(self) -> torch.Tensor | None:
        """What masks and sizes add to that position's scores, `[#batch, #heads, tokens]`."""
        parts = []
        if self.parent is not None and self.parent.sizes is not None:
            parts.append(self.parent.log_sizes(torch.float32)[:, None])
        for mask, hides in self.site.region.masks:
            row = self.mask_row(mask)
            if row.dtype == torch.bool:
                row = torch.where(row if hides else ~row, float("-inf"), 0.0)
            parts.append(row.float())
        if not parts:
            return None
        bias = reduce(torch.add, parts)
        return bias.expand(-1, -1, self.tokens) if is_one(bias.shape[2]) else bias

    def mask_row(self, mask: Node) -> torch.Tensor:
        """What a mask says to the position that the outputs read, `[batch, heads, tokens]`."""
        value = self.replay.value_of(mask)
        value = value.reshape([1] * (4 - value.dim()) + list(value.shape))
        row = self.full_positions(self.read_first())[:, :, None, None]
        if is_one(value.shape[2]):
            value = value[:, :, 0]
        else:
            value = value.expand(row.shape[0], -1, -1, -1) if is_one(value.shape[0]) else value
            row = row.expand(value.shape[0], value.shape[1], 1, value.shape[3])
            value = torch.gather(value, 2, row)[:, :, 0]
        if self.parent is None or is_one(value.shape[2]):
            return value
        kept = self.parent.position[:, None]
        rows = max_rows(kept, value)
        kept = kept.expand(rows, value.shape[1], -1)
        return torch.gather(value.expand(rows, -1, -1), 2, kept)

    @property
    def padding(self) -> torch.Tensor | None:
        """Tokens that are padding, `[batch, tokens]` boolean; None where nothing is masked."""
        if self.parent is not None:
            return self.parent.padding
        hidden = [key_padding(self, *mask) for mask in self.site.region.masks]
        found = [rows for rows in hidden if rows is not None]
        return reduce(torch.logical_or, found) if found else None

    def protected(self) -> torch.Tensor | None:
        """Tokens that the outputs read alone, `[batch or 1, tokens]` boolean."""
        index = self.protected_places()
        if index is None:
            return None
        place = torch.arange(self.tokens, device=self.device)
        return (place[None, None, :] == index[:, :, None]).any(1)

    def protected_places(self) -> torch.Tensor | None:
        """Their places among the tokens here, `[batch or 1, positions]`."""
        if self.parent is not None and self.parent.protected is not None:
            return self.parent.protected
        positions = sorted(self.stream.protected.positions, key=str)
        index = self.full_positions(positions) if positions else None
        if self.candidate.span:
            full = self.replay.size(self.stream.axis.size)
            rest = outside(self.candidate.span, full, self.device)
            index = rest if index is None else torch.cat([rest.expand(len(index), -1), index], 1)
        return None if index is None else places_among(index, self.parent)

    def places(self, positions: list[Position], cut: Reduction | None) -> torch.Tensor:
        """Places of full-length positions among the tokens that a cut left."""
        return places_among(self.full_positions(positions), cut)

    def since(self, cut: Reduction | None) -> list[Reduction]:
        """What happened to the stream between a value of the last attention and the site."""
        return [] if self.parent is None else self.parent.steps_from(cut)

    def full_positions(self, positions: list[Position]) -> torch.Tensor:
        """Positions as indices, `[batch or 1, positions]`."""
        full, columns = self.replay.size(self.stream.axis.size), []
        for position in positions:
            if isinstance(position.at, Node):
                columns.append(self.replay.value_of(position.at).long().reshape(-1, 1) % full)
            else:
                at = position.at if position.at >= 0 else full + position.at
                columns.append(torch.full((1, 1), at, dtype=torch.long, device=self.device))
        rows = next((c.shape[0] for c in columns if c.shape[0] != 1), 1)
        return torch.cat([c.expand(rows, 1) for c in columns], 1)

    def read_first(self) -> list[Position]:
        """The position whose attention row counts."""
        return sorted(self.stream.protected.positions, key=str)[:1]

    def row_at(self, value: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """One token's row of `[batch, heads, tokens, width]`, the token dimension kept."""
        index = place[:, None, :, None].expand(value.shape[0], value.shape[1], 1, value.shape[3])
        return torch.gather(value, 2, index)

    def per_head(
        self, node: Node, axis: Axis, transposed: bool = False
    ) -> tuple[torch.Tensor, Reduction | None]:
        """A region's operand as `[batch, heads, tokens, width]`, and how short it is."""
        value, label = self.replay.env[node], self.replay.label(node)
        if transposed:
            value, label = value.transpose(-1, -2), (*label[:-2], label[-1], label[-2])
        at = find_axis(label, axis)
        if at is None:
            raise Unalignable(f"{node.name} does not count the site's tokens")
        cut = label[at[0]][at[1]].cut
        batch = self.site.batch
        table, shape = self.replay.view.labels.table, self.replay.shape
        opened = open_factors(value, label, at, batch, table, shape)
        last = len(label[-1]) or 1
        dims = list(range(opened.value.dim()))
        width = dims[len(dims) - last :]
        heads = [d for d in dims if d not in (opened.token, opened.batch, *width)]
        lead = [] if opened.batch is None else [opened.batch]
        moved = opened.value.permute([*lead, *heads, opened.token, *width])
        sizes = [opened.value.shape[d] for d in lead] or [1]
        tokens = moved.shape[len(lead) + len(heads)]
        count = math.prod(opened.value.shape[d] for d in heads)
        return moved.reshape([*sizes, count, tokens, self.width(label)]), cut

    def width(self, label: Label) -> Any:
        """Entries of the last dimension."""
        return self.replay.shape(label[-1:])[0]


def places_among(index: torch.Tensor, cut: Reduction | None) -> torch.Tensor:
    """Places of full-length positions `[batch or 1, positions]` among the tokens of a cut."""
    for step in cut.steps_from(None) if cut is not None else []:
        index = place_among(step, index)
    return index


def sum_members(row: torch.Tensor, step: Reduction) -> torch.Tensor:
    """`[batch, heads, tokens]` shares of attention after a step: merged tokens have the sum."""
    if isinstance(step.reduce, Segment):
        goal = step.reduce.segment[:, None].expand(-1, row.shape[1], -1)
        out = row.new_zeros(row.shape[0], row.shape[1], step.count)
        return out.scatter_add(2, goal, row)
    index = step.local_index()[:, None]
    rows = max_rows(index, row)
    return torch.gather(row.expand(rows, -1, -1), 2, index.expand(rows, row.shape[1], -1))


def key_padding(signals: SiteSignals, mask: Node, hides: bool) -> torch.Tensor | None:
    """Keys that a mask hides from every query of every head, `[batch or 1, tokens]`.

    None if it does not say anything about keys. They are last: in self-attention the dimension of
    the queries may have the same axis.
    """
    value, label = signals.replay.value_of(mask), signals.replay.view.labels[mask]
    keys = find_axis(label[-1:], signals.site.region.key_axis)
    if value.dim() < 2 or keys is None or len(label[-1]) > 1:
        return None
    if value.dtype != torch.bool:
        value, hides = value > HIDDEN, False
    apart, at = ~value if hides else value, value.dim() - 1
    samples = samples_of_mask(signals, value)
    if samples is not None:  # samples may share their dimension with heads
        dim, _, sizes = samples
        apart = apart.unflatten(dim, sizes)
        at += len(sizes) - 1
    kept = {at} if samples is None else {at, samples[0] + samples[1]}
    others = [dim for dim in range(apart.dim()) if dim not in kept]
    rows = apart.any(others) if others else apart
    if samples is None:
        return ~rows[None]
    return ~rows


def samples_of_mask(signals: SiteSignals, mask: torch.Tensor) -> tuple[int, int, list[Any]] | None:
    """(dimension, place in it, sizes of its factors) of the samples in a mask; None if shared.

    They stand where the queries' samples stand, counted from the last dimension.
    """
    label = signals.replay.view.labels[signals.site.region.query]
    place = None if signals.site.batch is None else find_axis(label, signals.site.batch)
    if place is None:
        return None
    dim = mask.dim() + place[0] - len(label)
    if dim < 0 or is_one(mask.shape[dim]):
        return None
    sizes = [signals.replay.shape(((factor,),))[0] for factor in label[place[0]]]
    return dim, place[1], sizes
