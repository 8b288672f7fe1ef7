"""Partition a traced graph into fusion groups: the kernels that Inductor makes of it.

GEMMs, convolutions, attention, sorts and our own operators are calls of their own: on the CPU
Inductor leaves fp32 `linear` to `extern_kernels.addmm` and the activation behind it to a separate
C++ kernel, and on CUDA it does the same unless autotuning is on. Everything else fuses: pointwise
operators with each other and with the reductions (softmax, norms) whose iteration space they
share. Views cost nothing.

    linear -> gelu -> linear -> add -> layer_norm -> linear
    [linear]  [gelu]  [linear]  [add    layer_norm]  [linear]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import Max, Min

from tokenpass.cost.buffers import Buffers, allocations
from tokenpass.cost.cost_rules import CostRule
from tokenpass.cost.op_cost import op_cost
from tokenpass.cost.sizes import (
    ONE,
    ZERO,
    bytes_of,
    dtype_name,
    elements,
    tensors_in,
    value_of,
)
from tokenpass.ops.cost_record import OpCost, Work

OWNER_KEY = "tokenpass_edit"

# Work that Inductor generates code for; everything else is a call into a library.
FUSIBLE: Collection[Work] = frozenset({"pointwise", "special", "reduction", "gather"})


@dataclass(frozen=True)
class FusionGroup:
    """Operators that become one kernel.

    `work` and `dims` name the anchor's curve; `elements` holds (work, weighted elements) of every
    elementwise member; bytes are those that cross the group's border. `owner` is the index of the
    edit that inserted the group, or None for the model's own; `calls` what is started for it.
    """

    names: tuple[str, ...]
    work: Work
    dtype: str
    flops: sympy.Expr
    dims: tuple[sympy.Expr, ...]
    elements: tuple[tuple[Work, sympy.Expr], ...]
    bytes_read: sympy.Expr
    bytes_written: sympy.Expr
    owner: int | None = None
    calls: int | sympy.Expr = 1
    buffers: Buffers = field(default_factory=Buffers)

    @functools.cached_property
    def symbols(self) -> tuple[sympy.Symbol, ...]:
        """The levels that this group's cost depends on, in a fixed order."""
        calls = sympy.sympify(self.calls)
        parts = (self.flops, self.bytes_read, self.bytes_written, calls, *self.dims)
        found = {s for part in parts for s in part.free_symbols if isinstance(s, sympy.Symbol)}
        return tuple(sorted(found, key=str))


@dataclass(frozen=True)
class Fused:
    """The groups of a graph in order of their first operator; `unknown`: operators without a rule.

    `held` are the bytes of the graph's inputs, `kept` names the buffers that it hands out.
    """

    groups: tuple[FusionGroup, ...]
    unknown: tuple[str, ...]
    held: sympy.Expr
    kept: frozenset[str]


@dataclass(frozen=True)
class _Costed:
    """One operator that does work: where it stands, and the space that its loops run over."""

    node: fx.Node
    cost: OpCost
    depth: int
    space: sympy.Expr
    reduced: sympy.Expr
    owner: int | None
    fusible: bool


def fuse(graph: fx.Graph, own: Mapping[Any, CostRule]) -> Fused:
    """The groups of a graph; `own` holds the cost rules of operators of our own."""
    costed, bases, unknown = _cost_all(graph, own)
    leader = _fuse(graph, costed, bases)
    members: dict[fx.Node, list[_Costed]] = {}
    for node, item in costed.items():
        members.setdefault(leader[node], []).append(item)
    nodes = {node: frozenset(i.node for i in items) for node, items in members.items()}
    readers = _readers(graph, costed, bases)
    allocated = allocations(graph, bases)
    groups = []
    for node, items in members.items():
        inside = nodes[node]
        written = _written(items, inside, readers)
        generated = all(item.fusible for item in items)
        buffers = allocated.of_group([item.node for item in items], written, generated)
        groups.append(_group(items, inside, written, bases, buffers))
    return Fused(tuple(groups), tuple(sorted(unknown)), allocated.held, allocated.kept)


def _cost_all(
    graph: fx.Graph, own: Mapping[Any, CostRule]
) -> tuple[dict[fx.Node, _Costed], dict[fx.Node, fx.Node], set[str]]:
    """Every operator that does work, the node that each view stands for, unknown operators."""
    costed: dict[fx.Node, _Costed] = {}
    bases: dict[fx.Node, fx.Node] = {}
    depths: dict[fx.Node, int] = {}
    unknown: set[str] = set()
    for node in graph.nodes:
        cost, known = op_cost(node, own)
        if not known:
            unknown.add(str(node.target))
        inputs = [bases[argument] for argument in node.all_input_nodes]
        depth = max((depths[source] for source in inputs), default=0)
        if cost.work == "view":
            bases[node] = inputs[0] if node.op == "call_function" and inputs else node
            depths.setdefault(bases[node], depth)
            continue
        bases[node] = node
        fusible = cost.work in FUSIBLE and node.target not in own
        # A library call ends what its producers can fuse with: consumers are one step deeper.
        depths[node] = depth if fusible else depth + 1
        costed[node] = _costed(node, cost, depths[node], fusible)
    return costed, bases, unknown


def _costed(node: fx.Node, cost: OpCost, depth: int, fusible: bool) -> _Costed:
    out = tensors_in(value_of(node))
    reduced = elements(out[0])
    space = cost.dims[0] if fusible else reduced
    owner = node.meta.get(OWNER_KEY)
    return _Costed(node, cost, depth, space, reduced, owner, fusible)


def _fuse(
    graph: fx.Graph, costed: Mapping[fx.Node, _Costed], bases: Mapping[fx.Node, fx.Node]
) -> dict[fx.Node, fx.Node]:
    """The node that stands for the group of each operator.

    Producer and consumer fuse where no library call lies between them (equal depth, so that no
    cycle of kernels arises) and their loops run over the same space; a group without a reduction
    that only one other group reads is computed inside that one. Edits keep groups of their own.
    """
    leader = {node: node for node in costed}

    def find(node: fx.Node) -> fx.Node:
        while leader[node] is not node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    rows: dict[fx.Node, sympy.Expr] = {}
    for node, item in costed.items():
        if item.cost.work == "reduction":
            rows[node] = item.space
        for argument in node.all_input_nodes:
            source = costed.get(bases[argument])
            if source is not None and _fits(source, item, rows.get(source.node)):
                leader[find(node)] = find(source.node)
                if source.node in rows and item.space == source.reduced:
                    rows.setdefault(node, rows[source.node])
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in costed:
        members.setdefault(find(node), []).append(node)
    readers = _readers(graph, costed, bases)
    for head, nodes in reversed(list(members.items())):
        target = _sink_target([costed[node] for node in nodes], readers, costed, find)
        if target is not None:
            leader[head] = find(target)
    return {node: find(node) for node in costed}


def _sink_target(
    items: list[_Costed],
    readers: Mapping[fx.Node, list[fx.Node]],
    costed: Mapping[fx.Node, _Costed],
    find: Callable[[fx.Node], fx.Node],
) -> fx.Node | None:
    """The one fusible group that reads this one, if nothing else does and no reduction is in it."""
    if any(not item.fusible or item.cost.work == "reduction" for item in items):
        return None
    here = find(items[0].node)
    outside = [reader for item in items for reader in readers.get(item.node, ())]
    if any(reader not in costed for reader in outside):
        return None
    targets = {find(reader) for reader in outside} - {here}
    if len(targets) != 1:
        return None
    target = costed[targets.pop()]
    return target.node if target.fusible and target.owner == items[0].owner else None


def _fits(source: _Costed, target: _Costed, rows: sympy.Expr | None) -> bool:
    """Whether loops agree; `rows` is the space of the reduction that `source` comes from, if any.

    mean [n] of x [n, c] fuses with what is done to the means, [n], and with x * rsqrt(mean): the
    kernel has the row at hand once its mean is known.
    """
    if not (source.fusible and target.fusible) or source.owner != target.owner:
        return False
    if source.depth != target.depth:
        return False
    return target.space in (source.space, source.reduced, rows)


def _readers(
    graph: fx.Graph, costed: Mapping[fx.Node, _Costed], bases: Mapping[fx.Node, fx.Node]
) -> dict[fx.Node, list[fx.Node]]:
    """Who reads each base value: operators that do work, and the graph's output node."""
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in costed or node.op == "output":
            for argument in node.all_input_nodes:
                readers.setdefault(bases[argument], []).append(node)
    return readers


def _written(
    items: list[_Costed], inside: frozenset[fx.Node], readers: Mapping[fx.Node, list[fx.Node]]
) -> list[fx.Node]:
    """The members that others read."""
    return [
        item.node
        for item in items
        if any(reader not in inside for reader in readers.get(item.node, ()))
    ]


def _group(
    items: list[_Costed],
    inside: frozenset[fx.Node],
    written: Sequence[fx.Node],
    bases: Mapping[fx.Node, fx.Node],
    buffers: Buffers,
) -> FusionGroup:
    anchor = next((item for item in items if not item.fusible), None)
    anchor = anchor or next((item for item in items if item.cost.work == "reduction"), items[0])
    counted: dict[Work, sympy.Expr] = {}
    for item in items:
        if len(item.cost.dims) == 1:
            amount = item.cost.dims[0] * _weight(item.cost.weight)
            counted[item.cost.work] = counted.get(item.cost.work, ZERO) + amount
    return FusionGroup(
        names=tuple(item.node.name for item in items),
        work=anchor.cost.work,
        dtype=dtype_name(_main_tensor(anchor.node).dtype),
        flops=sympy.Add(*(item.cost.flops for item in items)),
        dims=anchor.cost.dims,
        elements=tuple(sorted(counted.items())),
        bytes_read=_bytes_read(items, inside, bases) - sympy.Add(*(i.cost.unread for i in items)),
        bytes_written=sympy.Add(*(bytes_of(value_of(node)) for node in written)),
        owner=items[0].owner,
        calls=anchor.cost.calls,
        buffers=buffers,
    )


def _weight(weight: float) -> sympy.Expr:
    return ONE if weight == 1.0 else sympy.Float(weight)


def _main_tensor(node: fx.Node) -> torch.Tensor:
    return tensors_in(value_of(node))[0]


def _bytes_read(
    items: list[_Costed], inside: frozenset[fx.Node], bases: Mapping[fx.Node, fx.Node]
) -> sympy.Expr:
    """Each outside value once: the part that is read, which a slice, gather or expand limits."""
    read: dict[fx.Node, sympy.Expr] = {}
    for item in items:
        for position, argument in enumerate(item.node.all_input_nodes):
            base = bases[argument]
            if base in inside or not tensors_in(value_of(argument)):
                continue
            size = _portion(value_of(argument), value_of(base))
            if item.cost.work == "gather" and position == 0:
                size = bytes_of(value_of(item.node))
            read[base] = _larger(read.get(base), size)
    return sympy.Add(*read.values())


def _portion(view: Any, base: Any) -> sympy.Expr:
    """Bytes of a view that memory has to deliver: never more than its base holds."""
    return _smaller(bytes_of(view), bytes_of(base))


def _smaller(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    return a if a == b else _pick(a, b, smaller=True)


def _larger(a: sympy.Expr | None, b: sympy.Expr) -> sympy.Expr:
    return b if a is None or a == b else _pick(a, b, smaller=False)


def _pick(a: sympy.Expr, b: sympy.Expr, smaller: bool) -> sympy.Expr:
    """Decided where the difference has a known sign, left as Min or Max where a level decides."""
    if a.is_number and b.is_number:
        return min(a, b) if smaller else max(a, b)
    ratio = a / b
    if ratio.is_number:
        return (a if ratio < 1 else b) if smaller else (b if ratio < 1 else a)
    # torch's own Min and Max: sympy's compare their arguments for most of the planner's time
    picked: Any = Min(a, b) if smaller else Max(a, b)
    return picked
