"""Writes in place that nobody else sees become values of their own.

    y = add_(x, b); f(y); g(x)   ->   y = add(x, b); f(y); g(y)

Allowed where no other alias of `x` is used behind the write: not the tensor that `x` is a view of,
not a view that was made before, no input and no output. Other writes stay, and what they reach is
never edited.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch.fx import GraphModule, Node

from tokenpass.graph.aliases import aliased_inputs, written_inputs
from tokenpass.tracing import calls, fake_value


def without_unseen_writes(module: GraphModule) -> None:
    """Replace such writes by the operators that give the same as a new value, in order."""
    graph = module.graph
    order = {node: at for at, node in enumerate(graph.nodes)}
    near: dict[Node, set[Node]] = defaultdict(set)
    writers: list[Node] = []
    for node in calls(graph):
        for source in aliased_inputs(node):
            near[source].add(node)
            near[node].add(source)
        if written_inputs(node):
            writers.append(node)
    for node in writers:
        new = value_of_write(node)
        written = node.args[0] if node.args else None
        if new is None or not isinstance(written, Node):
            continue
        if seen_elsewhere(node, written, near, order):
            continue
        node.target = new
        for source in aliased_inputs_of(node, near, order):
            near[source].discard(node)
            near[node].discard(source)
        later = [user for user in written.users if order[user] > order[node]]
        for user in later:
            user.replace_input_with(written, node)
            if user in near[written]:  # a view made behind the write is one of the new value
                near[written].discard(user)
                near[user].discard(written)
                near[node].add(user)
                near[user].add(node)
    if writers:
        module.recompile()


def aliased_inputs_of(
    node: Node, near: dict[Node, set[Node]], order: dict[Node, int]
) -> list[Node]:
    """Neighbours that came before."""
    return [other for other in near[node] if order[other] < order[node]]


def value_of_write(node: Node) -> torch._ops.OpOverload | None:
    """The overload that gives the written value without writing; None if there is none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    name = target._schema.name.split("::")[-1]
    if target.namespace != "aten" or not name.endswith("_") or name.startswith("_"):
        return None
    if torch.Tag.nondeterministic_seeded in target.tags or written_inputs(node) != list(
        node.args[:1]
    ):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    overload = getattr(packet, target._overloadname, None)
    if overload is None or not same_arguments(target, overload):
        return None
    mine = fake_value(node.args[0])  # type: ignore[arg-type]
    others = [fake_value(source) for source in node.all_input_nodes]
    tensors = [x for x in others if isinstance(x, torch.Tensor)]
    # a value of its own would take the wider dtype; without dimensions a tensor widens nothing
    same = all(x.dtype == mine.dtype or x.dim() == 0 or is_index(x) for x in tensors)
    return overload if same else None


def is_index(x: torch.Tensor) -> bool:
    """Masks and indices do not take part in promotion."""
    return x.dtype in (torch.bool, torch.int64)


def same_arguments(write: torch._ops.OpOverload, value: torch._ops.OpOverload) -> bool:
    """Whether two overloads take the same arguments and give one tensor."""
    names = [
        [(a.name, str(a.type)) for a in overload._schema.arguments] for overload in (write, value)
    ]
    returns = value._schema.returns
    return names[0] == names[1] and len(returns) == 1 and returns[0].alias_info is None


def seen_elsewhere(
    write: Node, written: Node, near: dict[Node, set[Node]], order: dict[Node, int]
) -> bool:
    """Whether memory that a write changes is an input, or is used behind it by another name."""
    family, queue = {written}, [written]
    while queue:
        for other in near[queue.pop()]:
            if other not in family and order[other] <= order[write] and other is not write:
                family.add(other)
                queue.append(other)
    for node in family:
        if node.op != "call_function":
            return True
        if node is not written and any(order[user] > order[write] for user in node.users):
            return True
    return False
