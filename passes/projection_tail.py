"""What a projection's kernel can compute too: the pointwise operators behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from tokenpass.graph.pointwise_reader import NotPointwise, PointwiseReader
from tokenpass.ops.pointwise import Expression
from tokenpass.rewrite.replacing import Calls
from tokenpass.tracing import fake_value

aten = torch.ops.aten

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MOST_ROWS = 8
"""Rows that the kernels are written for."""

MOST_FOLLOWING = 4
"""Pointwise operators behind the projection that its kernel computes too."""


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows a projection: `end` is `expression` of it and `inputs`."""

    end: Node
    expression: Expression
    inputs: tuple[Node, ...]


def bias_of(projection: Node) -> Node | None:
    """What a linear layer adds."""
    bias = projection.args[2] if len(projection.args) > 2 else None
    return bias if isinstance(bias, Node) else None


def following(down: Node, rows: Any, apart: frozenset[Node] = frozenset()) -> Tail:
    """The longest run of pointwise operators that only the next one reads, all of one shape.

    What joins a later projection's result is left to that one, so that no two regions compute one
    value; `apart`: operators that another region computes itself.

    Raises `NotPointwise` where not even the projection's own bias can be read.
    """
    run = [down]
    kept = read_tail(down, rows, run)
    while len(run) <= MOST_FOLLOWING and len(run[-1].users) == 1:
        run += run[-1].users
        others = (node for node in run[-1].all_input_nodes if node is not run[-2])
        if run[-1] in apart or any(comes_later(node, down) for node in others):
            break
        value = fake_value(run[-1])
        if not isinstance(value, torch.Tensor) or value.dtype != fake_value(down).dtype:
            break
        if sum(not isinstance(size, int) for size in value.shape) > 1:
            break
        try:
            kept = read_tail(down, rows, run)
        except NotPointwise:
            break
    return kept


def comes_later(node: Node, down: Node) -> bool:
    """Whether a later projection has a part in a value."""
    seen, queue = {node}, [node]
    while queue:
        one = queue.pop()
        if not down < one:
            continue
        if one.target is aten.linear.default:
            return True
        queue += [source for source in one.all_input_nodes if source not in seen]
        seen.update(one.all_input_nodes)
    return False


def read_tail(down: Node, rows: Any, run: Sequence[Node]) -> Tail:
    """The last of some operators as an expression of the projection; raises `NotPointwise`."""
    outputs, within = fake_value(down).shape[-1], frozenset(run)
    reader = PointwiseReader(rows, outputs, down, bias_of(down), within)
    expression = reader.read(run[-1])
    readable = all(fake_value(node).dtype in DTYPES for node in reader.inputs)
    if down not in reader.passed or not readable:
        raise NotPointwise
    return Tail(run[-1], expression, tuple(reader.inputs))


def tail_inputs(calls: Calls, tail: Tail) -> list[Node]:
    """What the operators behind the projection read, as matrices."""
    return [matrix(calls, calls[node]) for node in tail.inputs]


def matrix(calls: Calls, node: Node) -> Node:
    """A value as `[rows, columns]`."""
    shape = fake_value(node).shape
    if len(shape) == 2:
        return node
    return calls.call(aten.reshape.default, node, [-1, shape[-1] if shape else 1])


def shaped(calls: Calls, made: Node, like: Node) -> Node:
    """A matrix in another value's shape, of whose sizes one at most is dynamic."""
    shape = [size if isinstance(size, int) else -1 for size in fake_value(like).shape]
    return made if len(shape) == 2 else calls.call(aten.reshape.default, made, shape)
