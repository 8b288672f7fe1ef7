"""Several processes that compute one model together: the collectives in a graph, and values over
all of a group's ranks.

What a policy looks at may be a part that this rank alone has (its attention heads). Ranks that
chose by their own part would shorten one stream in different ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

COLLECTIVES = frozenset({"_c10d_functional", "_c10d_functional_autograd"})


def group_of(node: Node) -> Any:
    """The process group of a collective call; None of any other node."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in COLLECTIVES:
        return None
    names = [argument.name for argument in target._schema.arguments]
    if "group_name" not in names:
        return None
    at = names.index("group_name")
    return node.args[at] if at < len(node.args) else node.kwargs.get("group_name")


def has_collectives(graph: Graph) -> bool:
    """Whether other processes take part in a graph."""
    return any(group_of(node) is not None for node in graph.nodes)


def heads_of_all_ranks(value: torch.Tensor, groups: tuple[Any, ...]) -> torch.Tensor:
    """`[batch, heads, ..]` with the heads of every rank of the groups, in the ranks' order."""
    collectives = torch.ops._c10d_functional
    for group in groups:
        ranks = ranks_in(group)
        sent = collectives.all_gather_into_tensor(value.contiguous(), ranks, group)
        all_ranks = collectives.wait_tensor(sent).unflatten(0, (ranks, value.shape[0]))
        value = all_ranks.movedim(0, 1).flatten(1, 2)
    return value


def ranks_in(group: Any) -> int:
    """How many ranks a group has; graphs name it."""
    world: Any = torch.distributed.distributed_c10d
    return world._resolve_process_group(group).size()
