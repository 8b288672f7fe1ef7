"""What a head reads of a token stream, for people: the values in which its tokens end."""

from __future__ import annotations

import torch
from torch.fx import Node

from tokenpass.graph.axis import find_axis
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.causality import ancestors
from tokenpass.graph.labels import Labels
from tokenpass.graph.rules_mixing import Contract, Reduce
from tokenpass.graph.rules_position import AdvancedIndex, Read
from tokenpass.graph.sites import Stream
from tokenpass.tracing import is_float

aten = torch.ops.aten
ARGUMENT_OF_MAXIMUM = frozenset({aten.argmax.default, aten.max.dim})
PRODUCTS = frozenset({aten.mul.Tensor, aten.where.self, aten.masked_fill.Scalar})


def reads(stream: Stream, labels: Labels) -> tuple[str, ...]:
    """What is read of a stream behind its last value, each way once, in graph order."""
    found: dict[str, None] = {}
    held = {stream.chain[-1]}
    for node in stream.birth.graph.nodes:
        if not held.intersection(node.all_input_nodes):
            continue
        if node.op == "output":
            found["all tokens"] = None
        elif node in labels.of and find_axis(labels[node], stream.axis):
            held.add(node)
        else:
            found[reading(node, labels)] = None
    return tuple(found)


def reading(node: Node, labels: Labels) -> str:
    """How one call reads tokens that its result does not count any more."""
    rule = find_rule(node.target)
    if isinstance(rule, Read):
        return positions_read(node, rule, labels)
    if isinstance(rule, AdvancedIndex):
        return computed_position(node)
    if isinstance(rule, Reduce):
        return reduced(node, rule)
    if node.target is aten.scaled_dot_product_attention.default:
        return "attention pooling"
    if isinstance(rule, Contract):
        pooled = any(n.target in (aten.softmax.int, aten._softmax.default) for n in sources(node))
        return "attention pooling" if pooled else "weighted sum of tokens"
    return f"all tokens ({node.target})"


def sources(node: Node) -> list[Node]:
    """The inputs of a call, and theirs."""
    near = node.all_input_nodes
    return [*near, *(n for source in near for n in source.all_input_nodes)]


def positions_read(node: Node, rule: Read, labels: Labels) -> str:
    """Tokens at fixed places."""
    call = labels.call(node)
    places = rule.positions(call)
    if places is None or not places:
        return "a part of the tokens"
    size = call.operands[0].shape[call.dim()]
    if places == [0]:
        return "first token"
    if places == [-1] or (isinstance(size, int) and places == [size - 1]):
        return "last token"
    if len(places) == 1:
        return f"token {places[0]}"
    return f"tokens {places[0]} to {places[-1]}"


def computed_position(node: Node) -> str:
    """One token of each sample, at a place that the graph computes."""
    indices = node.args[1]
    nodes = [i for i in indices if isinstance(i, Node)] if isinstance(indices, list | tuple) else []
    if any(n.target in ARGUMENT_OF_MAXIMUM for i in nodes for n in ancestors(i)):
        return "token at an argmax"
    return "token at a computed position"


def reduced(node: Node, rule: Reduce) -> str:
    """A mean, a sum or a maximum over the tokens."""
    source = node.all_input_nodes[0]
    masked = source.target in PRODUCTS and is_float(source)
    if rule.law == "mean":
        return "mean of tokens"
    if rule.law == "sum":
        return "masked mean of tokens" if masked and is_divided(node) else "sum of tokens"
    return "maximum over tokens" if rule.law == "max" else f"all tokens ({node.target})"


def is_divided(node: Node) -> bool:
    """Whether a sum is divided by something."""
    return any(user.target is aten.div.Tensor and user.args[0] is node for user in node.users)
