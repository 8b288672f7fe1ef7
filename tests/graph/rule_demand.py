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

from .rule_harness import SpyReplay, build_call, call, join_axes, placeholder
from .rule_language import Example, T
from .rule_trial import Trial, draw_trial, make_value

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Reading:
    """The graph of one call, and the places at which its outputs are read."""

    module: GraphModule
    inputs: list[Node]
    entered: dict[Node, T]
    labels: Labels
    axis: Axis
    batch: Axis | None
    places: set[int]

    def run(self, changed: Node | None = None, value: torch.Tensor | None = None) -> Any:
        """The outputs, where one input may have another value."""
        values = [value if node is changed else node.meta["val"] for node in self.inputs]
        return self.module(*values)

    @property
    def streams(self) -> list[Node]:
        """Operands with tokens."""
        return [node for node, spec in self.entered.items() if "n" in spec.letters()]


def build_reading(trial: Trial, chance: random.Random) -> Reading | None:
    """The example's call, read; None if no tokens enter."""
    graph, generator = Graph(), torch.Generator().manual_seed(trial.seed)
    inputs: list[Node] = []
    entered: dict[Node, T] = {}

    def enter(spec: T) -> Node:
        inputs.append(placeholder(graph, make_value(spec, trial, generator)))
        node = call(graph, aten.clone.default, (inputs[-1],), {})
        entered[node] = spec
        return node

    outs = build_call(graph, trial, enter)
    outs = [*chance.choice([outs, outs[:1], [chance.choice(outs)]])]
    streams = [(node, spec) for node, spec in entered.items() if "n" in spec.letters()]
    if not streams:
        return None
    labels = Labels(graph)
    axis, _ = join_axes(labels, streams)
    if trial.example.tokens == "read" and chance.random() < 0.5:
        outs.append(streams[0][0])  # a value that is read at two places
    reads = [read_token(graph, node, labels, axis, chance) for node in outs]
    graph.output(tuple(node for node, _ in reads))
    labels = Labels(graph)
    axis, batch = join_axes(labels, streams)
    read = {place for _, place in reads if place is not None}
    return Reading(GraphModule({}, graph), inputs, entered, labels, axis, batch, read)


def read_token(
    graph: Graph, node: Node, labels: Labels, axis: Axis, chance: random.Random
) -> tuple[Node, int | None]:
    """The value of one token, and its place; all of a value that has none."""
    flat = list(factors(labels[node]))
    places = [at for at, factor in enumerate(flat) if factor.axis.root is axis.root]
    if not places:
        return node, None
    node = call(graph, aten.reshape.default, (node, [f.axis.size for f in flat]), {})
    at = chance.randrange(flat[places[0]].axis.size)
    return call(graph, aten.select.int, (node, places[0], at), {}), at


def check_demand(example: Example, target: Any, chance: random.Random) -> None:
    """Assert that tokens which are not demanded move no output, and that the others do."""
    trial = draw_trial(example, target, chance, "prune")
    reading = build_reading(trial, chance)
    if reading is None:
        return
    demands = demand_of(reading.module, reading.labels, reading.axis, reading.batch)
    for node, spec in reading.entered.items():
        demand, needed = demands.get(node, NOTHING), moving(reading, node, trial)
        assert demands.get(node.all_input_nodes[0], NOTHING) == demand
        pooled = example.tokens == "pooled" and node in reading.streams and is_sum(reading, node)
        assert (demand.extent is Extent.WEIGHTED) == pooled
        if node in reading.streams:
            known = places(demand, trial.size("n"))
            assert needed <= known, f"{spec} is read at {needed}, and {demand} says {known}"
            enough = sufficient(reading, trial, node, needed)
            assert enough is None or known <= enough, f"{demand} where {enough} is enough"
        else:
            assert demand.extent is not Extent.AT, f"{spec} has no tokens, and {demand} names some"
            assert demand.extent is not Extent.NONE or not needed
    check_read(reading, demands)


def sufficient(reading: Reading, trial: Trial, node: Node, needed: set[int]) -> set[int] | None:
    """The tokens beyond which the rule must demand nothing of an operand; None if it may.

    Where the example does not tell, they are those that move the outputs, but for values that are
    only compared and extrema (where they may move nothing by chance).
    """
    spec, tokens = reading.entered[node], trial.example.tokens
    if 0 in trial.shape(spec.letters()):
        return set()
    if spec.kind == "share" or tokens == "weights":
        return None
    if tokens in ("apart", "samples", "shape", "free"):
        return set() if tokens == "shape" else needed | reading.places
    if any(leaf.kind != "float" for leaf in reading.entered.values()):
        return None
    if tokens == "pooled" and not is_sum(reading, node):
        return None
    if tokens in ("restored", "read"):
        return needed if tokens == "read" else None
    return needed | reading.places if node is reading.streams[0] else None


def moving(reading: Reading, node: Node, trial: Trial) -> set[int]:
    """The tokens of one operand that move an output where they have another value.

    An operand without tokens is moved as a whole, as token 0.
    """
    (source,), spec = node.all_input_nodes, reading.entered[node]
    value, dense, found = source.meta["val"], reading.run(), set()
    for draw, scale in enumerate((100, -100)):
        other = make_value(spec, trial, torch.Generator().manual_seed(trial.seed + draw + 1))
        other = other * scale if value.is_floating_point() else other
        for token in range(trial.size("n") if "n" in spec.letters() else 1):
            changed = other
            if "n" in spec.letters():
                dim, changed = spec.letters().index("n"), value.clone()
                changed.select(dim, token).copy_(other.select(dim, token))
            pairs = zip(reading.run(source, changed), dense, strict=True)
            if not all(torch.allclose(a, b, rtol=0, atol=1e-7, equal_nan=True) for a, b in pairs):
                found.add(token)
    return found


def is_sum(reading: Reading, node: Node) -> bool:
    """Whether the outputs are sums or means of one operand: `f(-x) = -f(x)`, unlike extrema."""
    (source,), dense = node.all_input_nodes, reading.run()
    if source.meta["val"].dtype == torch.bool:
        return all(out.dtype != torch.bool for out in dense)
    pairs = zip(reading.run(source, -source.meta["val"]), dense, strict=True)
    return all(torch.allclose(a, -b, equal_nan=True) for a, b in pairs)


def places(demand: Demand, count: int) -> set[int]:
    """The tokens that a demand names."""
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
    replay = SpyReplay(view, {}, (ReadCut(stream, ordered, frozenset(apart), 0),))
    for node in reading.streams:
        replay.stream_nodes |= {node.all_input_nodes[0], *view.downstream(node.all_input_nodes[0])}
    got = replay.run(*[node.meta["val"] for node in reading.inputs])
    for value, dense in zip(got, reading.run(), strict=True):
        torch.testing.assert_close(value, dense, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert not replay.restored, replay.restored
    for node in apart:
        if any(source in apart or source in reading.inputs for source in node.all_input_nodes):
            assert has_cut(replay.label(node)), f"{node.target} computes tokens that nobody reads"
