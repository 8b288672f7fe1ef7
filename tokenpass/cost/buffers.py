"""What each kernel of a graph allocates and reads: the facts behind peak memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from tokenpass.cost.sizes import bytes_of, elements, shares_storage, tensors_in, value_of


@dataclass(frozen=True)
class Buffers:
    """What a group holds: `makes` are (name, bytes) of what it allocates, `reads` are names.

    `generated`: Inductor's own kernel, which may write over what it reads; `last` is the place of
    the group's last operator in the graph.
    """

    makes: tuple[tuple[str, sympy.Expr], ...] = ()
    reads: tuple[str, ...] = ()
    generated: bool = False
    last: int = 0


@dataclass(frozen=True)
class Allocations:
    """Who allocated what each value of a graph lies in.

    `held` are the bytes of the graph's inputs, `kept` names the buffers that it hands out.
    """

    owner: Mapping[fx.Node, fx.Node]
    place: Mapping[fx.Node, int]
    first_use: Mapping[str, fx.Node]
    held: sympy.Expr
    kept: frozenset[str]

    def of_group(
        self, members: Sequence[fx.Node], written: Sequence[fx.Node], generated: bool
    ) -> Buffers:
        """The buffers of a kernel of these operators, of which others read those `written`.

        What is written into a buffer of another operator is not new.
        """
        inside = frozenset(members)
        makes = [(n.name, bytes_of(value_of(n))) for n in written if self.owner[n] is n]
        reads = {self.owner[a].name: None for n in members for a in n.all_input_nodes}
        reads = {name: None for name in reads if name not in {node.name for node in inside}}
        for node in members:
            makes += _workspace(node)
            if (copy := mask_copy(node, self.owner)) is not None:
                name, size = copy
                if self.first_use[name] is node:
                    makes.append((name, size))
                else:
                    reads[name] = None
        last = max(self.place[node] for node in members)
        return Buffers(tuple(makes), tuple(reads), generated, last)


def allocations(graph: fx.Graph, bases: Mapping[fx.Node, fx.Node]) -> Allocations:
    """The allocations of a traced graph; `bases` maps what costs nothing to what it stands for."""
    owner: dict[fx.Node, fx.Node] = {}
    first_use: dict[str, fx.Node] = {}
    for node in graph.nodes:
        base = bases.get(node, node)
        owner[node] = owner[base] if base is not node else _allocator(node, owner)
        if (copy := mask_copy(node, owner)) is not None:
            first_use.setdefault(copy[0], node)
    inputs = [node for node in graph.nodes if node.op in ("placeholder", "get_attr")]
    return Allocations(
        owner,
        {node: at for at, node in enumerate(graph.nodes)},
        first_use,
        sympy.Add(*(bytes_of(value_of(node)) for node in inputs)),
        frozenset(owner[node].name for node in graph.output_node().all_input_nodes),
    )


def _allocator(node: fx.Node, owner: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The node itself, or that of the input which it writes to."""
    own = tensors_in(value_of(node)) if node.op == "call_function" else []
    for argument in node.all_input_nodes:
        if own and shares_storage(own[0], tensors_in(value_of(argument))):
            return owner[argument]
    return node


def mask_copy(node: fx.Node, owner: Mapping[fx.Node, fx.Node]) -> tuple[str, sympy.Expr] | None:
    """(name, bytes) of what torch makes of a boolean attention mask: numbers of the query's type.

    One copy serves all layers with that mask, or with equal slices of it.
    """
    if node.target is not torch.ops.aten.scaled_dot_product_attention.default:
        return None
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    query, value = value_of(node.all_input_nodes[0]), value_of(mask)
    if not isinstance(mask, fx.Node) or not isinstance(value, torch.Tensor):
        return None
    if value.dtype is not torch.bool:
        return None
    size = elements(value) * query.element_size()
    return f"{owner[mask].name} as {size} bytes of {query.dtype}", size


def _workspace(node: fx.Node) -> list[tuple[str, sympy.Expr]]:
    """What a call holds beside its result: convolutions copy what they read to channels last."""
    if node.target not in CONVOLUTIONS:
        return []
    return [(f"{node.name} channels last", bytes_of([value_of(n) for n in node.all_input_nodes]))]


CONVOLUTIONS = frozenset(
    {
        torch.ops.aten.conv1d.default,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv3d.default,
        torch.ops.aten.convolution.default,
    }
)
