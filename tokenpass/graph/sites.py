"""Sites: where an edit can act on a token stream, found by dominance and named for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import networkx as nx
import torch
from torch.fx import GraphModule, Node

from tokenpass.graph.axis import Axis, find_axis, find_places
from tokenpass.graph.demand_lattice import NOTHING, Demand, Extent
from tokenpass.graph.labels import Labels
from tokenpass.graph.regions import AttentionRegion
from tokenpass.tracing import is_float, module_path, output_nodes

READ_ALONE = 8
"""More positions than this are a part of the stream, which may lose tokens like the whole."""


@dataclass(frozen=True, eq=False)
class Site:
    """A stream value through which everything from the data input to the main output flows.

    `role`: `after_attention` (the first such value behind an attention) or `block_output` (the
    last one before the next attention; one and the same where a layer has a single such value).
    `layer` is that of the attention before it.
    """

    name: str
    role: str
    layer: int
    node: Node
    region: AttentionRegion
    axis: Axis
    batch: Axis | None
    token_dim: int
    batch_dim: int | None


@dataclass(frozen=True, eq=False)
class Stream:
    """One token stream: its axis, demand, self-attention regions and chain of values."""

    axis: Axis
    batch: Axis | None
    chain: tuple[Node, ...]
    regions: tuple[AttentionRegion, ...]
    demand: dict[Node, Demand]
    sites: tuple[Site, ...]

    @property
    def birth(self) -> Node:
        """The first value of the chain."""
        return self.chain[0]

    @property
    def protected(self) -> Demand:
        """Demand on the stream where it is consumed, with the positions read alone.

        A long run of positions (all patches, to take their mean) is not read alone.
        """
        demand = self.demand.get(self.chain[-1], NOTHING)
        if len(demand.positions) > READ_ALONE:
            return Demand(max(demand.extent, Extent.WEIGHTED))
        return demand


def data_flow(module: GraphModule) -> nx.DiGraph:
    """Nodes and their uses."""
    flow = nx.DiGraph()
    for node in module.graph.nodes:
        flow.add_node(node)
        flow.add_edges_from((source, node) for source in node.all_input_nodes)
    return flow


def main_output(module: GraphModule, caches: frozenset[Node]) -> Node | None:
    """The first floating output that is not a cache."""
    for node in output_nodes(module):
        if isinstance(node, Node) and is_float(node) and node not in caches:
            return node
    return None


def stream_chain(
    flow: nx.DiGraph, inputs: list[Node], goal: Node, axis: Axis, labels: Labels
) -> tuple[Node, ...]:
    """Stream values that dominate the main output, seen from the source that gives most of them.

    Sources are the data inputs that give birth to the stream (a mask does not) and its births: an
    index that is computed from the same input by another way does not count as a way around the
    stream. What no data flows into (a rotary table, learnt queries) is a source only where nothing
    else is one.
    """
    born = births(flow, inputs, axis, labels)
    behind = {node: nx.descendants(flow, node) for node in inputs}
    fed = set(inputs).union(*behind.values())
    bearing = [
        node for node in inputs if carries_stream(node, axis, labels) or behind[node] & {*born}
    ]
    tiers = ([*bearing, *(node for node in born if node in fed)], born)
    for sources in tiers:
        chains = [chain_from(flow, source, goal, axis, labels) for source in sources]
        best = max(chains, key=len, default=[])
        if best:
            return tuple(best)
    return ()


def chain_from(
    flow: nx.DiGraph, source: Node, goal: Node, axis: Axis, labels: Labels
) -> list[Node]:
    """Stream values on every way from a source to the main output, in order."""
    if not nx.has_path(flow, source, goal):
        return []
    idom = nx.immediate_dominators(flow, source)
    chain, node = [], goal
    while node is not source:
        chain.append(node)
        node = idom[node]
    chain.append(source)
    return [n for n in reversed(chain) if carries_stream(n, axis, labels)]


def births(flow: nx.DiGraph, inputs: list[Node], axis: Axis, labels: Labels) -> list[Node]:
    """Stream values that no other stream value leads to, on whatever way (an input may be one)."""
    led_to = {node for node in inputs if carries_stream(node, axis, labels)}
    found = []
    for node in flow:
        if node.op != "call_function":
            continue
        if any(source in led_to for source in flow.predecessors(node)):
            led_to.add(node)
        elif carries_stream(node, axis, labels):
            found.append(node)
            led_to.add(node)
    return found


def carries_stream(node: Node, axis: Axis, labels: Labels) -> bool:
    """Whether a value holds one floating vector for each token (scores and masks hold pairs)."""
    if node not in labels.of or not is_float(node):
        return False
    label = labels[node]
    places = find_places(label, axis)
    return len(places) == 1 and places[0][0] < len(label) - 1


def find_sites(
    chain: tuple[Node, ...],
    regions: tuple[AttentionRegion, ...],
    axis: Axis,
    labels: Labels,
) -> tuple[Axis | None, tuple[Site, ...]]:
    """The batch axis of a stream and its sites, two at most for each attention region."""
    order = {node: at for at, node in enumerate(chain[0].graph.nodes)}
    batch: Axis | None = None
    found: list[tuple[str, Node, AttentionRegion]] = []
    for at, region in enumerate(regions):
        end = order[regions[at + 1].query] if at + 1 < len(regions) else float("inf")
        inside = [n for n in chain if order[region.node] < order[n] < end]
        inside = [n for n in inside if batch_place(n, axis, labels) is not None]
        if inside:
            found.append(("after_attention", inside[0], region))
        work = [node for node in inside if not copies(node)]
        if at + 1 < len(regions) and work:
            found.append(("block_output", work[-1], region))
    sites, seen = [], Counter[str]()
    for role, node, region in found:
        name = f"{module_path(node) or 'model'}:{role}"
        seen[name] += 1
        name += f"#{seen[name] - 1}" if seen[name] > 1 else ""
        token_dim, batch_dim, batch = batch_place(node, axis, labels)  # type: ignore[misc]
        sites.append(
            Site(name, role, region.layer, node, region, axis, batch, token_dim, batch_dim)
        )
    return batch, tuple(sites)


def copies(node: Node) -> bool:
    """Whether a value only repeats another one (casts, dropout in evaluation)."""
    packet = getattr(node.target, "overloadpacket", None)
    aten = torch.ops.aten
    return packet in (aten.to, aten.dropout, aten.alias, aten.contiguous, aten.clone, aten._to_copy)


def batch_place(
    node: Node, axis: Axis, labels: Labels
) -> tuple[int, int | None, Axis | None] | None:
    """(token dim, batch dim, batch axis) of a `[batch, tokens, width]`-like value, else None."""
    label = labels[node]
    place = find_axis(label, axis)
    if place is None or place[0] == len(label) - 1 or len(label[place[0]]) > 1:
        return None
    others = [
        (at, factor)
        for at, dim in enumerate(label[:-1])
        for factor in dim
        if at != place[0] and not factor.axis.constant
    ]
    if len(others) > 1 or any(len(label[at]) > 1 for at, _ in others):
        return None
    if not others:
        return place[0], None, None
    return place[0], others[0][0], others[0][1].axis.root
