"""Sets of rows: what happens between a sort of rows and their way back, shown to treat rows apart.

    claim    out[i] depends on in[i] alone, whatever the order was in between

Every call that a sort's order or numbers of rows reach must be one of these:

- a rule that treats the order like any axis of tokens: blocks none of it and sums over none of it;
- a rule that uses numbers of rows as such (`Rule.minds_rows`), and says what its own result means.

The first call that is neither (or a graph output, or a write in place) refuses the whole set: its
rows are at full length before they are sorted.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch.fx import Graph, Node

from tokenpass.graph.axis import Axis, Label, Size, Unalignable, factors
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.call import Call
from tokenpass.graph.meaning import Tally, keys_of
from tokenpass.graph.rules_order import Order
from tokenpass.tracing import calls

if TYPE_CHECKING:
    from tokenpass.graph.labels import Labels


@dataclass(frozen=True, eq=False)
class RowSet:
    """One sort of rows. `calls`: all that its order reaches; `exits`: those that undo the order.

    `refused`: the call that could not be shown to treat rows apart, and why; None if all do.
    """

    sort: Node
    calls: tuple[Node, ...]
    exits: tuple[Node, ...]
    refused: tuple[Node, str] | None


@dataclass(frozen=True, eq=False)
class Fewer:
    """A cut that may have left any rows."""

    count: Size
    parent: None = None
    sizes: None = None
    per_sample: bool = False
    read: None = None


def find_row_sets(graph: Graph, labels: Labels) -> list[RowSet]:
    """The sorts of rows in a graph; what is shown of them is noted in `labels.table`."""
    found = []
    for node in calls(graph):
        rule = find_rule(node.target)
        if not isinstance(rule, Order) or not sorts_rows(node, rule, labels):
            continue
        rows = follow_rows(node, graph, labels)
        if rows.refused is None:
            labels.table.row_wise.update(rows.calls)
        found.append(rows)
    return found


def sorts_rows(node: Node, rule: Order, labels: Labels) -> bool:
    """Whether a call sorts a list of several entries, and is not the way back of another sort."""
    call = labels.call(node)
    return rule.flat(call) and bool(call.operands[0].label[0]) and rule.inverse(call) is None


def follow_rows(sort: Node, graph: Graph, labels: Labels) -> RowSet:
    """Everything that the order of a sort reaches, until rows are back or a call refuses."""
    (dim,) = labels[sort]
    order, keys = {f.axis.root for f in dim}, keys_of(sort.args[0])  # type: ignore[arg-type]
    strange = not order <= {*labels.table.ordered_by}
    reached: dict[Node, None] = {}
    holders: set[Node] = set()
    exits: list[Node] = []
    for node in graph.nodes:
        counted = node.op == "call_function" and tallies(node, keys, labels)
        if node is not sort and not counted and not holders.intersection(node.all_input_nodes):
            continue
        why = "its order meets that of other rows" if strange else None
        if why is None and not (node is sort or counted):
            why = objection(node, order, holders, labels)
        if why is not None:
            return RowSet(sort, tuple(reached), tuple(exits), (node, why))
        reached[node] = None
        if node is sort or holds(node, order, labels):
            holders.add(node)
        else:
            exits.append(node)
    return RowSet(sort, tuple(reached), tuple(exits), None)


def tallies(node: Node, keys: Node, labels: Labels) -> bool:
    """Whether a call counts the keys of a sort."""
    meanings = labels.meanings.get(node, ())
    return any(isinstance(m, Tally) and not m.ends and m.keys is keys for m in meanings)


def holds(node: Node, order: set[Axis], labels: Labels) -> bool:
    """Whether a value is in the order of a sort, or its integers speak of rows."""
    in_order = any(counts(label, order) for label in labels.of.get(node, ()))
    return in_order or any(labels.meanings.get(node, ()))


def counts(label: Label, order: set[Axis]) -> bool:
    """Whether a label has axes of a sort."""
    return any(factor.axis.root in order for factor in factors(label))


def objection(node: Node, order: set[Axis], holders: set[Node], labels: Labels) -> str | None:
    """Why a call on values in the order of a sort might look at several rows; None if it cannot."""
    if node.target is operator.getitem:
        return None
    if node.op != "call_function":
        return "rows leave the graph in the order of their keys"
    rule = find_rule(node.target)
    if node in labels.written:
        return f"{node.target} writes in place"
    if rule is None or node not in labels.of:
        return f"{node.target} has no rule"
    call = labels.call(node)
    for source in node.all_input_nodes:
        outside = source not in holders and source in labels.of
        if outside and any(counts(label, order) for label in labels.of[source]):
            return f"{source.name} lies beside rows in the order of their keys"
        if counts(labels.of.get(source, ((),))[0], {*labels.table.ordered_by} - order):
            return "rows of two orders meet"
    if any(operand.meaning is not None for operand in call.operands):
        return None if rule.minds_rows(call) else f"{node.target} uses numbers of rows as values"
    return mixes(node, with_fewer(call, order))


def with_fewer(call: Call, order: set[Axis]) -> Call:
    """The call as if some rows were missing."""
    cuts = {axis: Fewer(axis.size) for axis in order}

    def fewer(label: Label) -> Label:
        return tuple(
            tuple(replace(f, cut=cuts.get(f.axis.root, f.cut)) for f in dim) for dim in label
        )

    return call.with_operands([replace(o, label=fewer(o.label)) for o in call.operands])


def mixes(node: Node, call: Call) -> str | None:
    """Why an ordinary rule might let rows look at one another; None if it does not."""
    rule = find_rule(node.target)
    if rule is None or rule.blocked(call):
        return f"{node.target} needs all rows"
    if rule.summed(call):
        return f"{node.target} sums over rows"
    try:
        outs = rule.infer(call)
    except Unalignable as reason:
        return f"{node.target}: {reason}"
    kept = all(any(f.cut is not None for f in factors(out)) for out in outs)
    return None if kept else f"{node.target} loses track of rows"
