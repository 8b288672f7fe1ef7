"""Values that a graph's own constants alone decide: computed while it is analysed.

    torch.erfinv(2 * torch.tensor(0.95) - 1) * sqrt(2)      is      1.6448...

Such a value may lie on the CPU beside a model on another device, where no kernel could read it.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes

from tokenpass.tracing import fake_value

MOST_CALLS = 32
"""Calls behind one constant."""


def constant_number(node: Node) -> float | None:
    """The number that a floating value of one entry is; None where anything else decides it."""
    fake = fake_value(node)
    single = isinstance(fake, Tensor) and fake.is_floating_point() and fake.dim() == 0
    if not single or not (chain := constants_behind(node)):
        return None
    values: dict[Node, Any] = {}
    with torch.no_grad(), _disable_current_modes():
        for one in chain:
            if one.op == "get_attr":
                values[one] = attrgetter(str(one.target))(one.graph.owning_module)
                continue
            args, kwargs = map_arg((one.args, one.kwargs), values.__getitem__)
            values[one] = one.target(*args, **kwargs)  # type: ignore[operator]
    found = float(values[node])
    return None if found != found else found


def constants_behind(node: Node) -> list[Node]:
    """What a value is computed from, in order, if constants and calls without effects alone."""
    found: set[Node] = set()
    queue = [node]
    while queue:
        one = queue.pop()
        if one in found:
            continue
        found.add(one)
        if len(found) > MOST_CALLS or not is_constant(one) or any(map(writes, one.users)):
            return []
        queue += one.all_input_nodes
    if not any(one.op == "get_attr" for one in found):
        return []
    return sorted(found)


def is_constant(node: Node) -> bool:
    """Whether it is a tensor of the graph, or a call that draws nothing and writes nothing."""
    if node.op == "get_attr":
        module = node.graph.owning_module
        return isinstance(attrgetter(str(node.target))(module), Tensor) if module else False
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    seeded = torch.Tag.nondeterministic_seeded in target.tags
    return target.namespace == "aten" and not writes(node) and not seeded


def writes(node: Node) -> bool:
    """Whether a call changes what it is given (`detach_` changes no value)."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target is torch.ops.aten.detach_.default:
        return False
    return target._schema.is_mutable
