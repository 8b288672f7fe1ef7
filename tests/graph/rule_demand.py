"""Checks a rule's word on demand: what it leaves out moves no output, and need not be computed.

clone -> call -> the output's tokens at one place
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from tokenpass.graph.axis import Axis, factors, find_axis, has_cut
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.demand import demand_of
from tokenpass.graph.demand_lattice import NOTHING, Demand, Extent, Position
from tokenpass.graph.labels import Labels
from tokenpass.graph.sites import Stream
from tokenpass.graph.view import View
from tokenpass.rewrite.read_cut import ReadCut
from tokenpass.rewrite.replay import Replay

from .rule_harness import build_call, call, join_axes, placeholder
from .rule_language import Example, T
from .rule_trial import Trial, draw_trial, make_value

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Reading:
    """The graph of one call, its output read at one place. `streams`: operands with tokens."""

    module: GraphModule
    inputs: list[Node]
    streams: dict[Node, T]
    labels: Labels
    axis: Axis
    batch: Axis | None

    def run(self, changed: Node | None = None, value: torch.Tensor | None = None) -> Any:
        """The outputs, where one input may have another value."""
        values = [value if node is changed else node.meta["val"] for node in self.inputs]
        return self.module(*values)

    def demands(self) -> dict[Node, Demand]:
        return demand_of(self.module, self.labels, self.axis, self.batch)


def build_reading(trial: Trial, chance: random.Random) -> Reading | None:
    """The example's call, read; None if no tokens enter."""
    graph, generator = Graph(), torch.Generator().manual_seed(trial.seed)
    inputs: list[Node] = []
    streams: dict[Node, T] = {}

    def enter(spec: T) -> Node:
        inputs.append(placeholder(graph, make_value(spec, trial, generator)))
        node = call(graph, aten.clone.default, (inputs[-1],), {})
        if "n" in spec.letters():
            streams[node] = spec
        return node

    outs = build_call(graph, trial, enter)
    if not streams:
        return None
    labels = Labels(graph)
    axis, _ = join_axes(labels, list(streams.items()))
    graph.output(tuple(read_token(graph, node, labels, axis, chance) for node in outs))
    labels = Labels(graph)
    axis, batch = join_axes(labels, list(streams.items()))
    return Reading(GraphModule({}, graph), inputs, streams, labels, axis, batch)


def read_token(graph: Graph, node: Node, labels: Labels, axis: Axis, chance: random.Random) -> Node:
    """The value of one token; all of a value that has none."""
    flat = list(factors(labels[node]))
    places = [at for at, factor in enumerate(flat) if factor.axis.root is axis.root]
    if not places:
        return node
    node = call(graph, aten.reshape.default, (node, [f.axis.size for f in flat]), {})
    at = chance.randrange(flat[places[0]].axis.size)
    return call(graph, aten.select.int, (node, places[0], at), {})


def check_demand(example: Example, target: Any, chance: random.Random) -> None:
    """Assert that tokens which are not demanded move no output, and that the others do."""
    trial = draw_trial(example, target, chance, "prune")
    reading = build_reading(trial, chance)
    if reading is None:
        return
    demands = reading.demands()
    for node, spec in reading.streams.items():
        demand = demands.get(node, NOTHING)
        needed = moving(reading, node, spec, trial)
        known = places(demand, trial, reading)
        assert needed <= known, f"{spec} is read at {needed}, and {demand} says {known}"
    check_read(reading, demands)


def moving(reading: Reading, node: Node, spec: T, trial: Trial) -> set[int]:
    """The tokens of one operand that move an output where they have another value."""
    (source,) = node.all_input_nodes
    dim = spec.letters().index("n")
    dense = reading.run()
    other = make_value(spec, trial, torch.Generator().manual_seed(trial.seed + 1))
    found = set()
    for token in range(trial.size("n")):
        value = source.meta["val"].clone()
        value.select(dim, token).copy_(other.select(dim, token))
        pairs = zip(reading.run(source, value), dense, strict=True)
        if not all(torch.allclose(a, b, rtol=0, atol=1e-6, equal_nan=True) for a, b in pairs):
            found.add(token)
    return found


def places(demand: Demand, trial: Trial, reading: Reading) -> set[int]:
    """The tokens that a demand names."""
    count = trial.size("n")
    if demand.extent is Extent.NONE:
        return set()
    if demand.extent is not Extent.AT:
        return set(range(count))
    found: set[int] = set()
    for position in demand.positions:
        at = position.at
        found |= {at % count} if isinstance(at, int) else {*(at.meta["val"] % count).tolist()}
    return found


def check_read(reading: Reading, demands: dict[Node, Demand]) -> None:
    """Assert that values which hold the demanded places alone give the same outputs."""
    labels, axis = reading.labels, reading.axis
    apart = [
        node
        for node, demand in demands.items()
        if demand.extent is Extent.AT
        and node.op == "call_function"
        and find_rule(node.target) is not None
        and find_axis(labels[node], axis) is not None
    ]
    positions: set[Position] = set()
    for node in apart:
        positions |= demands[node].positions
    ordered = tuple(sorted(positions, key=lambda p: (isinstance(p.at, Node), str(p))))
    if not apart or len(ordered) >= axis.size:
        return
    stream = Stream(axis, reading.batch, (reading.inputs[0],), (), demands, ())
    view = View(reading.module, labels, (), (stream,), {}, frozenset(), None, ())
    replay = Replay(view, {}, (ReadCut(stream, ordered, frozenset(apart), 0),))
    for node in reading.streams:
        replay.stream_nodes |= {node.all_input_nodes[0], *view.downstream(node.all_input_nodes[0])}
    got = replay.run(*[node.meta["val"] for node in reading.inputs])
    for value, dense in zip(got, reading.run(), strict=True):
        torch.testing.assert_close(value, dense, rtol=1e-5, atol=1e-6, equal_nan=True)
    for node in apart:
        if any(source in apart or source in reading.inputs for source in node.all_input_nodes):
            assert has_cut(replay.label(node)), f"{node.target} computes tokens that nobody reads"
