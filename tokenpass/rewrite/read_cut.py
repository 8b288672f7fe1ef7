"""Exact cuts: values that are read at some positions alone hold nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.fx import Node

from tokenpass.graph.axis import (
    Size,
    Unalignable,
)
from tokenpass.graph.demand_lattice import Position
from tokenpass.graph.sites import Stream
from tokenpass.rewrite.reduction import Gather, Reduction, Slice


@dataclass(frozen=True, eq=False)
class ReadCut:
    """An exact cut: values of this stream that are read at `positions` alone hold nothing else."""

    stream: Stream
    positions: tuple[Position, ...]
    nodes: frozenset[Node]
    owner: int


def run_start(positions: tuple[Position, ...], full: Size, parent: Reduction | None) -> Size | None:
    """Where a run of neighbouring constant positions starts; None if it is no run.

    Below an ordered lossy cut only the protected first and last tokens have known places.
    """
    places = [p.at for p in positions if isinstance(p.at, int)]
    if len(places) < len(positions):
        return None
    if any(b - a != 1 for a, b in pairwise(places)):
        return None
    if parent is None:
        return places[0] if places[0] >= 0 else full + places[0]
    if not parent.ordered or len(places) > 1:
        return None
    if places == [0]:
        return 0
    last = places == [-1] or (
        isinstance(parent.axis.size, int) and places[0] == parent.axis.size - 1
    )
    return parent.count - 1 if last else None


def place_among(step: Reduction, index: torch.Tensor) -> torch.Tensor:
    """Places of the parent's tokens among the tokens that a reduction left."""
    if step.representative is not None:
        where = step.representative
    elif isinstance(step.reduce, Slice):
        return index - step.reduce.start
    elif isinstance(step.reduce, Gather):
        kept = step.reduce.index
        rows = next((t.shape[0] for t in (kept, index) if t.shape[0] != 1), 1)
        # kept places rise: a kept token's place is the number of kept ones before it
        return (kept[:, None, :].expand(rows, -1, -1) < index.expand(rows, -1)[..., None]).sum(-1)
    else:
        raise Unalignable("a dense reduction has no place for a token")
    rows = next((t.shape[0] for t in (where, index) if t.shape[0] != 1), 1)
    return torch.gather(where.expand(rows, -1), 1, index.expand(rows, -1))
