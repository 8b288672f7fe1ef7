"""What the reference is told about a graph: plain names and numbers, nothing that rewrites."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class AttentionFacts:
    """One attention, by the names of its nodes.

    Fused: `node` is the call and `softmax` is empty. Hand-written: `softmax` takes the scores
    `[.., queries, keys]` and `node` multiplies its result with the values. `query_stream` and
    `key_stream` say whose tokens the queries and keys count (None: no stream's). `key` and `query`
    are `[batch, heads, tokens, width]`, the key transposed if `key_transposed`. `masks`: what
    may hide padding, and whether True in it means hidden. `groups`: the process groups whose ranks
    have its other heads.
    """

    node: str
    query: str
    key: str
    query_stream: int | None
    key_stream: int | None
    softmax: str = ""
    key_transposed: bool = False
    scale: float | None = None
    masks: tuple[tuple[str, bool], ...] = ()
    groups: tuple[Any, ...] = ()


@dataclass(frozen=True)
class StreamFacts:
    """One token stream. `protected`: positions that the outputs read alone (or nodes' names).

    `chain`: the values that everything flows through, by name, with their (token dimension, batch
    dimension); None where a value holds tokens in another way.
    """

    causal: bool
    protected: tuple[int | str, ...]
    chain: dict[str, tuple[int, int | None] | None]


@dataclass(frozen=True)
class SiteFacts:
    """One site: the value's node, its dimensions, and the attention just before it.

    `end`: the value in the last layer that is to it what the site is to its own layer; there
    pruned tokens come back for good.
    """

    node: str
    stream: int
    token_dim: int
    batch_dim: int | None
    attention: AttentionFacts
    end: str


@dataclass(frozen=True)
class ShortFacts:
    """A dimension of a value in which the edited graph holds groups: whose, and where samples are.

    `batch_dim`: the dimension that counts samples (heads may follow in it); None: there is none.
    """

    dim: int
    stream: int
    batch_dim: int | None


@dataclass(frozen=True, eq=False)
class MaskFacts:
    """Entries of a projection's input that count: magnitudes above `threshold`, NaN among them.

    Magnitudes of the input, or of `gate`, a pointwise text over the values called `inputs`. Without
    a threshold each row leaves out the `share` of its entries that is smallest, where of all rows
    the least bound counts, or (`each_row`) every row its own. `site`: the projection's name in the
    plan, by which a call's own threshold is found.
    """

    threshold: torch.Tensor | None
    share: float
    gate: str = ""
    inputs: tuple[str, ...] = ()
    each_row: bool = False
    site: str = ""


@dataclass(frozen=True)
class GraphFacts:
    """All of a graph and its plan that the reference is told.

    `short`: values that the edited graph holds with fewer tokens: whoever needs them all reads
    every token's representative. `averaged`: values that it holds at full length, of which short
    ones meet the mean over each group. `whole`: sites' nodes at which all tokens are there again.
    `masks`: projections by name, and which entries of their inputs count.
    """

    streams: tuple[StreamFacts, ...]
    attentions: tuple[AttentionFacts, ...]
    sites: dict[str, SiteFacts]
    short: dict[str, tuple[ShortFacts, ...]] = field(default_factory=dict)
    averaged: dict[str, tuple[ShortFacts, ...]] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    masks: dict[str, MaskFacts] = field(default_factory=dict)


FUSED = torch.ops.aten.scaled_dot_product_attention.default
