"""MLP regions: a projection to the intermediate width, elementwise operators, and one back.

    plain    y = down(act(up(x)))
    gated    y = down(act(gate(x)) * up(x))      gate and up apart, or parts of one projection

Found backwards from every projection; what stands between may be spelt in any way.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from tokenpass.graph.activations import Unreadable, computed, grid, name_of, name_of_gated
from tokenpass.graph.axis import Axis, factors
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.labels import Labels
from tokenpass.graph.layers import layer_of, layer_prefixes
from tokenpass.graph.meaning import keys_of
from tokenpass.graph.regions import AttentionRegion
from tokenpass.graph.rules_apart import Pointwise
from tokenpass.graph.rules_layout import Layout
from tokenpass.graph.rules_position import Parts, Read
from tokenpass.tracing import calls, fake_value, is_float

aten = torch.ops.aten
OPERANDS: Mapping[Any, tuple[int, int, int | None]] = {
    aten.linear.default: (0, 1, 2),
    aten.matmul.default: (0, 1, None),
    aten.mm.default: (0, 1, None),
    aten.addmm.default: (1, 2, 0),
    aten.conv1d.default: (0, 1, 2),
}
"""Products, and where their value, weight and bias stand."""

MOST_BETWEEN = 32
"""Operators between two projections that are looked through."""


@dataclass(frozen=True, eq=False)
class Projection:
    """One product with a weight: `value` is what it gives, `source` what it is given."""

    value: Node
    source: Node
    weight: Node
    bias: Node | None


@dataclass(frozen=True, eq=False)
class MlpRegion:
    """One MLP. `gate` is None where it is plain; `up` is then what the activation acts on.

    `gate_value`, `up_value`: the values that meet (the projections', or parts of one); `product`:
    where they do. `hidden`: what `down` reads, `[.., intermediate]`: where it is zero, rows of its
    weight do not count. `activation`: a name of `ACTIVATIONS`, empty for any other; `acting`: its
    operators. `axis` counts the intermediate width. `layer`: that of the attention beside it, else
    of the last one before it; None before all.
    """

    layer: int | None
    source: Node
    gate: Projection | None
    up: Projection
    down: Projection
    gate_value: Node | None
    up_value: Node
    product: Node | None
    acting: tuple[Node, ...]
    activation: str
    hidden: Node
    axis: Axis
    output: Node

    @property
    def kind(self) -> str:
        """`plain`, `gated`, or `fused` (gated by parts of one projection)."""
        if self.gate is None:
            return "plain"
        return "fused" if self.gate is self.up else "gated"


def mlp_regions(
    graph: Graph, labels: Labels, attention: Sequence[AttentionRegion]
) -> list[MlpRegion]:
    """All MLPs over tokens, in graph order."""
    streams = {region.query_axis.root for region in attention if region.is_self}
    prefixes = layer_prefixes(attention)
    found, passed = [], set[Node]()
    for node in calls(graph):
        passed.add(node)
        down = projection(node, labels)
        if down is None or not streams & {f.axis.root for f in factors(labels[node])}:
            continue
        layer = layer_of(node, prefixes)
        if layer is None:  # one layer may hold several attentions
            layer = max((r.layer for r in attention if r.node in passed), default=None)
        region = region_before(down, labels, layer)
        if region is not None:
            found.append(region)
    return found


def projection(node: Node, labels: Labels) -> Projection | None:
    """A call as the product of a value with a weight; None if it is none.

    Convolutions of one entry are products over channels.
    """
    places = OPERANDS.get(node.target)
    if places is None or not is_float(node):
        return None
    source, weight, bias = (
        node.args[at] if at is not None and at < len(node.args) else None for at in places
    )
    if not isinstance(source, Node) or not isinstance(weight, Node):
        return None
    sizes = fake_value(weight).shape
    windows = one_conv(node)
    narrow = not windows or (sizes[-1] == 1 and len(node.args) < 7)  # neither window nor groups
    if not is_weight(weight) or len(sizes) - windows != 2 or not narrow:
        return None
    return Projection(node, source, stored(weight), bias if isinstance(bias, Node) else None)


def one_conv(node: Node) -> int:
    """Dimensions of a weight that count entries of a window."""
    return int(node.target is aten.conv1d.default)


def is_weight(node: Node) -> bool:
    """Whether a value is a parameter, seen through casts and transpositions."""
    return stored(node).op in ("placeholder", "get_attr")


def stored(node: Node) -> Node:
    """The tensor behind casts, views and transpositions of it."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], Node):
        rule = find_rule(node.target)
        if not (isinstance(rule, Layout) or (isinstance(rule, Pointwise) and rule.copies)):
            break
        node = node.args[0]
    return node


def region_before(down: Projection, labels: Labels, layer: int | None) -> MlpRegion | None:
    """The region that ends in a projection; None if it is something else."""
    between = operators_between(down, labels)
    if between is None:
        return None
    nodes, ends = between
    inside = {*nodes, down.value}
    if any(user not in inside for node in nodes for user in node.users):
        return None  # somebody else reads what would be replaced
    projections = {value: projection(stored(value_behind(value)), labels) for value in ends}
    hidden = nodes[-1] if nodes else down.source
    channel = -2 if one_conv(down.value) else -1
    dim = labels[down.source][channel]
    sources = {keys_of(p.source) for p in projections.values() if p is not None}
    if None in projections.values() or len(sources) != 1 or len(dim) != 1:
        return None
    values = tuple(ends)
    if len(values) == 1:
        name = plain_name(nodes, values[0])
        if name in (None, "identity"):
            return None
        gate_value, up_value, product = None, values[0], None
        acting = tuple(node for node in nodes if not same_entries(node))
    else:
        gate_value, up_value, name = gated_name(nodes, values)
        reached = behind(nodes, up_value)
        product = next((n for n in nodes if n in reached and n in behind(nodes, gate_value)), None)
        if product is None:
            return None
        acting = tuple(n for n in nodes if n not in reached and not same_entries(n))
    gate = projections[gate_value] if gate_value is not None else None
    up = projections[up_value]
    if gate is not None and up is not None and gate.value is up.value:
        gate = up
    if up is None:
        return None
    return MlpRegion(
        layer,
        up.source,
        gate,
        up,
        down,
        gate_value,
        up_value,
        product,
        acting,
        name or "",
        hidden,
        dim[0].axis.root,
        down.value,
    )


def operators_between(down: Projection, labels: Labels) -> tuple[list[Node], list[Node]] | None:
    """The operators between a projection and those before it, in order, and where they begin.

    One or two values begin them: projections, or parts of one. None where anything else does.
    """
    nodes: set[Node] = set()
    ends: set[Node] = set()
    queue = [down.source]
    while queue:
        node = queue.pop()
        if node in nodes or node in ends:
            continue
        if is_part(node, labels) or projection(node, labels) is not None:
            ends.add(node)
            continue
        if not goes_through(node) or len(nodes) == MOST_BETWEEN:
            return None
        nodes.add(node)
        queue += [source for source in node.all_input_nodes if not is_weight(source)]
    if not 1 <= len(ends) <= 2:
        return None
    return sorted(nodes), sorted(ends)


def goes_through(node: Node) -> bool:
    """Whether a call is elementwise, or only arranges entries."""
    if node.op != "call_function":
        return False
    rule = find_rule(node.target)
    return isinstance(rule, Layout | Pointwise)


def same_entries(node: Node) -> bool:
    """Whether a call gives its input's entries, of whatever shape and dtype."""
    rule = find_rule(node.target)
    return isinstance(rule, Layout) or (isinstance(rule, Pointwise) and rule.copies)


def is_part(node: Node, labels: Labels) -> bool:
    """Whether a value is one of several parts of a projection's."""
    whole = value_behind(node)
    return whole is not node and projection(stored(whole), labels) is not None


def value_behind(node: Node) -> Node:
    """What a value is a part of; the value itself if it is no part."""
    source = node.args[0] if node.args else None
    if node.target is operator.getitem and isinstance(source, Node):
        if isinstance(find_rule(source.target), Parts):
            return source.args[0]  # type: ignore[return-value]
    elif isinstance(find_rule(node.target), Read) and isinstance(source, Node):
        return value_behind(source) if isinstance(find_rule(source.target), Read) else source
    return node


def behind(nodes: Sequence[Node], start: Node | None) -> set[Node]:
    """The operators that a value reaches."""
    reached = {start}
    for node in nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return {node for node in reached if node is not None and node is not start}


def plain_name(nodes: Sequence[Node], start: Node) -> str | None:
    """The activation of a plain MLP; empty if unknown, None if there is nothing but copies."""
    if all(same_entries(node) for node in nodes):
        return None
    try:
        return name_of(computed(nodes, {start: grid()}, same_entries))
    except Unreadable:
        return ""


def gated_name(nodes: Sequence[Node], values: tuple[Node, ...]) -> tuple[Node, Node, str]:
    """(gate, up, activation) of two values that meet; the first is the gate where neither tells."""
    first, second = values
    named: list[tuple[Node, Node, str]] = []
    for gate, up in ((first, second), (second, first)):

        def value(g: Tensor, u: Tensor, gate: Node = gate, up: Node = up) -> Tensor:
            return computed(nodes, {gate: g, up: u}, same_entries)

        try:
            named.append((gate, up, name_of_gated(value)))
        except Unreadable:
            named.append((gate, up, ""))
    acting = [found for found in named if found[2] not in ("", "identity")]
    return next(iter([*acting, *(found for found in named if found[2]), named[0]]))
