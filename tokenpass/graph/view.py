"""All facts about one captured graph in one value, which planner, passes and rewriter read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import Axis, find_axis
from tokenpass.graph.causality import Examples
from tokenpass.graph.demand import demand_of
from tokenpass.graph.labels import Labels
from tokenpass.graph.mlp import MlpRegion, mlp_regions
from tokenpass.graph.regions import AttentionRegion, attention_regions
from tokenpass.graph.sites import Site, Stream, data_flow, find_sites, main_output, stream_chain
from tokenpass.graph.windows import window_rejection, windowed_attention
from tokenpass.tracing import (
    fake_tensors,
    fake_value,
    is_float,
    module_path,
    output_nodes,
    source_line,
)


@dataclass(frozen=True, eq=False)
class View:
    """What analysis found. `caches`: keys and values that the graph hands out."""

    module: GraphModule
    labels: Labels
    regions: tuple[AttentionRegion, ...]
    streams: tuple[Stream, ...]
    written: dict[Node, Node]
    caches: frozenset[Node]
    main: Node | None
    rejections: tuple[Rejection, ...]
    mlps: tuple[MlpRegion, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites of all streams, in graph order."""
        return tuple(site for stream in self.streams for site in stream.sites)

    def stream_of(self, site: Site) -> Stream:
        """The stream that a site belongs to."""
        return next(stream for stream in self.streams if site in stream.sites)

    def downstream(self, node: Node) -> set[Node]:
        """All values computed from a node."""
        seen: set[Node] = set()
        queue = [node]
        while queue:
            for user in queue.pop().users:
                if user not in seen:
                    seen.add(user)
                    queue.append(user)
        return seen


def analyse(
    module: GraphModule, inputs: list[Node], examples: Mapping[Node, Any] | None = None
) -> View:
    """Find labels, regions, streams, demand, aliases and sites; nothing is changed.

    `inputs`: the placeholders that hold data (not parameters or buffers). `examples`: the call's
    real inputs by placeholder; without them no mask is known not to be causal.
    """
    labels = Labels(module.graph)
    known = Examples(examples or {}, frozenset(inputs))
    regions = tuple(attention_regions(module.graph, labels, known))
    written = labels.written
    caches = handed_out(module, regions)
    goal = main_output(module, caches)
    rejections: list[Rejection] = []
    streams = tuple(find_streams(module, labels, regions, goal, inputs, rejections))
    mlps = tuple(mlp_regions(module.graph, labels, regions))
    told = tuple(rejections)
    return View(module, labels, regions, streams, written, caches, goal, told, mlps)


def find_streams(
    module: GraphModule,
    labels: Labels,
    regions: tuple[AttentionRegion, ...],
    goal: Node | None,
    inputs: list[Node],
    rejections: list[Rejection],
) -> list[Stream]:
    """One stream for each axis that some self-attention runs over."""
    windows = windowed_attention(module.graph, labels, inputs)
    rejections += [window_rejection(node, labels) for node in windows]
    own = [r for r in regions if r.is_self and r.attention not in windows]
    if goal is None or not (own or windows):
        because = "no floating output" if goal is None else "no self-attention"
        rejections.append(Rejection("no_token_stream", "graph", because))
        return []
    flow, streams = data_flow(module), []
    for axis in dict.fromkeys(region.query_axis for region in own):
        mine = tuple(region for region in own if region.query_axis is axis)
        chain = stream_chain(flow, inputs, goal, axis, labels)
        if not chain:
            first = mine[0].node
            because = "no value of this stream separates the data input from the main output"
            place = module_path(first) or first.name
            rejections.append(Rejection("no_chain", place, because, source=source_line(first)))
            continue
        batch, sites = find_sites(chain, mine, axis, labels)
        demand = demand_of(module, labels, axis, batch)
        streams.append(Stream(axis, batch, chain, mine, demand, sites))
    return streams


def handed_out(module: GraphModule, regions: tuple[AttentionRegion, ...]) -> frozenset[Node]:
    """Graph outputs that are an attention's keys or values (looking through copies of heads)."""
    outputs = {node for node in output_nodes(module) if isinstance(node, Node)}
    found: set[Node] = set()
    for region in regions:
        for node in (region.key, region.value):
            current: Node | None = node
            for _ in range(12):
                if current is None:
                    break
                if current in outputs:
                    found.add(current)
                    break
                current = passes_through(current)
    return frozenset(found)


def handed_on(module: GraphModule, inputs: Iterable[Node]) -> frozenset[Node]:
    """Graph outputs that hold a floating input as it came: joined with more, cut, or copied.

    So a step of decoding hands its caches on, whose attention has too few queries to be told by.
    """
    given = {node for node in inputs if is_float(node)}
    outputs = {node for node in output_nodes(module) if isinstance(node, Node)}
    return frozenset(node for node in outputs if node not in given and held(node) & given)


def held(node: Node) -> set[Node]:
    """The values that a value is made of by joining, cutting and copying alone."""
    found, queue = set[Node](), [node]
    while queue:
        one = queue.pop()
        if one in found:
            continue
        found.add(one)
        source = passes_through(one)
        joined = one.target in JOINING and bool(one.args)
        queue += one.all_input_nodes if joined else [source] if source is not None else []
    return found


JOINING = frozenset({torch.ops.aten.cat.default, torch.ops.aten.index_copy.default})


def passes_through(node: Node) -> Node | None:
    """The source of a value that only copies or regroups another one."""
    aten = torch.ops.aten
    through = {aten.expand, aten.reshape, aten.view, aten.unsqueeze, aten.slice, aten.contiguous}
    through |= {aten.transpose, aten.clone, aten.to, aten.repeat_interleave, aten.index_select}
    packet = getattr(node.target, "overloadpacket", None)
    source = node.args[0] if node.args else None
    return source if packet in through and isinstance(source, Node) else None


def token_count(view: View, node: Node, axis: Axis) -> object:
    """Length of a token axis in a value (for tables and messages)."""
    place = find_axis(view.labels[node], axis)
    return fake_value(node).shape[place[0]] if place else None


def fingerprint(module: GraphModule) -> str:
    """Hash of operators, shapes, dtypes and module names; dynamic sizes count by appearance."""
    lines, names = [], {}

    def named(thing: object) -> object:
        return thing if isinstance(thing, int) else names.setdefault(str(thing), f"v{len(names)}")

    for node in module.graph.nodes:
        shapes = [([named(size) for size in t.shape], str(t.dtype)) for t in fake_tensors(node)]
        target = str(node.target) if node.op == "call_function" else ""
        inputs = [named(source) for source in node.all_input_nodes]
        lines.append(f"{node.op} {target} {shapes} {inputs} {module_path(node)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
