"""A graph with what goes from one call to later ones: small inputs and outputs beside its own.

    f(x) -> y     becomes     f(x, t1, t2) -> y, s1, s2

`t` are what calls were given (`Calls.given`), `s` what they leave. Nothing is written in place, so
two sequences never mix, and whoever runs the graph decides what belongs together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from tokenpass.rewrite.replacing import GIVEN, Given, attributes, fake_mode_of
from tokenpass.tracing import (
    carry_over,
    fake_value,
    output_nodes,
    placeholders,
    plain_constants,
    retrace,
)

Kept = tuple[Node, Callable[[Tensor], Tensor]]
"""A value `[.., entries]`, and what is kept of it as `[rows, entries]`."""


def given_nodes(module: GraphModule) -> list[Node]:
    """The nodes of a graph that stand for what a call is given, in order."""
    return [node for node in module.graph.nodes if GIVEN in node.meta]


def with_carried(
    module: GraphModule, kept: Sequence[Kept] = ()
) -> tuple[GraphModule, tuple[Given, ...]]:
    """The graph with an input for all that it is given, and an output for all that is kept.

    The outputs come as one flat tuple, the kept ones last.
    """
    graph, copied = Graph(), dict[Node, Node]()
    new_inputs: dict[Node, Node] = {}
    for node in placeholders(module):
        copied[node] = graph.node_copy(node)
    for at, node in enumerate(given_nodes(module)):
        new = new_inputs[node] = graph.placeholder(f"tokenpass_given_{at}")
        new.meta = {"val": fake_value(node)}
    for node in module.graph.nodes:
        if node.op != "output" and node not in copied:
            copied[node] = new_inputs.get(node) or graph.node_copy(node, copied.__getitem__)
    results = [copied[x] if isinstance(x, Node) else x for x in output_nodes(module)]
    results += [what_is_kept(graph, copied[node], seen) for node, seen in kept]
    graph.output(tuple(results))
    new_module = GraphModule(attributes(module), graph)
    plain_constants(new_module)
    carry_over(module, new_module, added=len(new_inputs))
    return new_module, tuple(node.meta[GIVEN] for node in new_inputs)


def what_is_kept(graph: Graph, value: Node, seen: Callable[[Tensor], Tensor]) -> Any:
    """The calls that keep something of a value, behind all others."""
    mode, fake = fake_mode_of(value), fake_value(value)
    if mode is None:
        raise TypeError(f"{value.name} was not traced")
    traced = retrace(lambda x: seen(x.reshape(-1, x.shape[-1])), [fake], mode)
    (inside,) = placeholders(traced)
    return graph.graph_copy(traced.graph, {inside: value})
