"""Backward over the graph: which tokens of every value the outputs need."""

from __future__ import annotations

import operator

from torch.fx import GraphModule, Node

from tokenpass.graph.axis import Axis, Unalignable, find_axis
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.demand_lattice import EVERYTHING, NOTHING, Demand, Position
from tokenpass.graph.labels import Labels
from tokenpass.tracing import output_nodes


def demand_of(
    module: GraphModule, labels: Labels, axis: Axis, batch: Axis | None
) -> dict[Node, Demand]:
    """Demand on the tokens (along `axis`) of every value that has a label.

    Positions that a node holds must be one for each entry of `batch`, and known early.
    """
    demands: dict[Node, dict[int, Demand]] = {}
    unsteady = behind_writes(module, labels)

    def add(node: Node, demand: Demand, output: int = 0) -> None:
        known = demands.setdefault(node, {})
        known[output] = known.get(output, NOTHING) | demand

    for node in output_nodes(module):
        if isinstance(node, Node) and node in labels.of:
            add(node, EVERYTHING)
    for node in reversed(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is operator.getitem:
            source, index = node.args
            add(source, demands.get(node, {}).get(0, NOTHING), index)
            continue
        out = demands.get(node, {})
        apart = labels.keeps_samples(node, batch, axis) if computed(merge(out)) else True
        for source, demand in operand_demands(node, labels, axis, out):
            strange = any(p.rows is not batch or p.at in unsteady for p in computed(demand))
            mixed = not apart and computed(demand) & computed(merge(out))
            add(source, EVERYTHING if strange or mixed else demand)
    return {node: merge(found) for node, found in demands.items()}


def behind_writes(module: GraphModule, labels: Labels) -> set[Node]:
    """Values that depend on one that is written to: they cannot be computed ahead of their turn."""
    found = set(labels.written)
    for node in module.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def computed(demand: Demand) -> frozenset[Position]:
    """The positions that the graph computes, one for each sample."""
    return frozenset(p for p in demand.positions if isinstance(p.at, Node))


def merge(found: dict[int, Demand]) -> Demand:
    """Demand on any output of a node."""
    out = NOTHING
    for demand in found.values():
        out = out | demand
    return out


def operand_demands(
    node: Node, labels: Labels, axis: Axis, out: dict[int, Demand]
) -> list[tuple[Node, Demand]]:
    """Demand on the inputs of one call; all of every input where no rule says less."""
    inputs = [n for n in node.all_input_nodes if n in labels.of]
    rule = find_rule(node.target)
    if node not in labels.of or rule is None:
        return [(source, EVERYTHING) for source in inputs]
    if node in labels.table.row_wise:
        return [(source, row_demand(source, labels, axis, merge(out))) for source in inputs]
    call = labels.call(node)
    outs = [out.get(at, NOTHING) for at in range(len(call.out_shapes))]
    try:
        per_operand = rule.demand(call, axis, outs)
    except Unalignable:
        return [(source, EVERYTHING) for source in inputs]
    ordered = operand_nodes(node, labels)
    demands = list(zip(ordered, per_operand, strict=True))
    if demands and not any(find_axis(labels[s], axis) for s, _ in demands):
        whole = merge(dict(enumerate(outs)))
        return [(source, whole.read_whole()) for source, _ in demands]
    return demands


def row_demand(source: Node, labels: Labels, axis: Axis, out: Demand) -> Demand:
    """Demand on an input of a call that treats rows apart, in whatever order they are."""
    holds_rows = source in labels.table.row_wise or find_axis(labels[source], axis)
    return out if holds_rows else out.read_whole()


def operand_nodes(node: Node, labels: Labels) -> list[Node]:
    """The nodes behind `Call.operands`, in the same order (repeats included)."""
    found: list[Node] = []
    schema = node.target._schema  # type: ignore[union-attr]
    for at, argument in enumerate(schema.arguments):
        value = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name)
        items = value if isinstance(value, list | tuple) else [value]
        found += [item for item in items if isinstance(item, Node) and item in labels.of]
    return found
