"""One replay of a captured graph with all edits of a plan in it.

Every value carries the label that it has now. Values without a cut run as they are. Elsewhere the
operator's rule says which operands must be at full length, what the others must look like, and how
to run; side operands follow the stream. What no rule covers gets restored operands.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_map

from tokenpass.edits import Rejection
from tokenpass.graph.axis import (
    Unalignable,
    find_axis,
    has_cut,
    with_cut,
)
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.call import Call, Operand, bind
from tokenpass.graph.demand_lattice import Demand, Extent
from tokenpass.graph.rule import Blocked, Rule
from tokenpass.graph.view import View
from tokenpass.rewrite.read_cut import ReadCut, place_among, run_start
from tokenpass.rewrite.reduction import Gather, Reduction, Slice, owned_by
from tokenpass.rewrite.restoring import ReplayRefused, Restoring, leaves_values
from tokenpass.rewrite.returning import return_reason
from tokenpass.rewrite.values import NodeOperand
from tokenpass.tracing import fake_value, module_path, source_line

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Action:
    """What an edit does at its site's node: `reduce` makes the reduction from the node's value.

    `owner`: the edit's index, by which what it adds is marked and a refusal is told.
    """

    owner: int
    reduce: Callable[[Replay, Node, Any], Reduction]


class Replay(Restoring):
    """Interprets the captured graph with edits. `actions` make a reduction at a site's node.

    `barriers`: operators before which tokens came back; `found_whole`: the edits that found all of
    their stream's tokens (its first one, and those behind such a place), with their nodes.
    """

    def __init__(
        self,
        view: View,
        actions: Mapping[Node, list[Action]],
        read_cuts: tuple[ReadCut, ...] = (),
        keep_short: frozenset[Node] = frozenset(),
    ) -> None:
        super().__init__(view)
        self.actions = actions
        self.read_cuts = read_cuts
        self.keep_short = keep_short
        self.barriers: list[Rejection] = []
        self.found_whole: dict[int, Node] = {}

    def run_node(self, n: Node) -> Any:
        if n in self.env:
            return self.env[n]
        with self._set_current_node(n):
            if n.op == "placeholder":
                value = super().run_node(n)
                self.note_symbols(n, value)
            elif n.op == "call_function":
                value = self.run_call(n)
            elif n.op == "output":
                value = self.run_output(n)
            else:
                value = super().run_node(n)
            return self.act(n, value)

    def run_call(self, node: Node) -> Any:
        """Run one call on the operands as they are now."""
        if node.target is operator.getitem:
            return self.run_getitem(node)
        args = self.map_nodes_to_values(node.args, node)
        kwargs = self.map_nodes_to_values(node.kwargs, node)
        inputs = [n for n in node.all_input_nodes if n in self.view.labels.of]
        cuts = [cut for cut in self.read_cuts if node in cut.nodes]
        if not cuts and not any(has_cut(self.label(n)) for n in inputs):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.target is aten.sym_size.int:
            return self.size(fake_value(node))
        rule = find_rule(node.target)
        if rule is None or node not in self.view.labels.of:
            return self.run_barrier(node)
        try:
            return self.run_rule(node, rule, cuts)
        except Unalignable as reason:
            return self.run_barrier(node, str(reason))

    def run_getitem(self, node: Node) -> Any:
        """Pick one of several outputs, with its label."""
        (source,), index = node.all_input_nodes, node.args[1]
        if source in self.now and isinstance(index, int):
            self.now[node] = (self.now[source][index],)
        return self.env[source][index]

    def run_rule(self, node: Node, rule: Rule, cuts: list[ReadCut]) -> Any:
        """Align operands by the rule, run, and label the outputs."""
        call = self.call(node)
        read = self.run_read(call, rule)
        if read is not None:
            return read
        for index, at in [*self.mixed_samples(call), *rule.restored_first(call)]:
            operands = call.operands
            self.note_return(node, operands[index], at)
            operands[index] = self.restore(operands[index], at)
            call = call.with_operands(operands)
        for cut in cuts:
            call = self.shorten_queries(call, rule, cut)
        outs = rule.infer(call)
        targets = rule.targets(call, outs)
        pairs = zip(call.operands, targets, strict=True)
        call = call.with_operands([self.align(operand, target) for operand, target in pairs])
        value = rule.execute(call, outs, self)
        if any(has_cut(label) for label in outs):
            self.now[node] = outs
        return value

    def call(self, node: Node) -> Call:
        """The node as a call on current values."""

        def operand(value: Any) -> Any:
            if not isinstance(value, Node):
                return value
            if value not in self.view.labels.of or not isinstance(fake_value(value), torch.Tensor):
                return self.env[value]
            shape = tuple(fake_value(value).shape)
            stream = value in self.stream_nodes
            meaning = self.view.labels.meaning(value)
            now = self.label(value)
            return NodeOperand(now, shape, self.env[value], stream, meaning=meaning, node=value)

        raw = bind(node.target, node.args, node.kwargs)
        bound = {name: tree_map(operand, value) for name, value in raw.items()}
        return self.view.labels.call(node, bound)

    def run_read(self, call: Call, rule: Rule) -> Any:
        """A read at fixed positions of a value that holds just such positions."""
        slots_of = getattr(rule, "read_positions", None)
        if slots_of is None:
            return None
        blocked = rule.blocked(call)
        if len(blocked) != 1 or blocked[0][0] != 0:
            return None
        ((_, (dim, place)),) = blocked
        factors = call.operands[0].label[dim]
        positions = slots_of(call, dim) if len(factors) == 1 else None
        slots = None if positions is None else factors[place].cut.slots(positions)
        if slots is None:
            return None
        return rule.read_slots(call, dim, slots)  # type: ignore[attr-defined]

    def mixed_samples(self, call: Call) -> list[Blocked]:
        """Factors cut for each sample by itself, where the call brings samples together."""
        return [
            (index, (dim, place))
            for index, operand in enumerate(call.operands)
            for dim, factors in enumerate(operand.label)
            for place, factor in enumerate(factors)
            if factor.cut is not None
            and factor.cut.per_sample
            and not self.view.labels.keeps_samples(call.node, factor.cut.batch, factor.axis)
        ]

    def shorten_queries(self, call: Call, rule: Rule, cut: ReadCut) -> Call:
        """Shorten the operands of which no more is read than of the output: the rule's demand.

        Side operands follow when the operands are aligned.
        """
        (out, *_) = rule.infer(call)
        at = find_axis(out, cut.stream.axis)
        if at is None:
            return call
        goal = self.read_reduction(cut, out[at[0]][at[1]].cut)
        read = Demand(Extent.AT, frozenset(cut.positions))
        demands = rule.demand(call, cut.stream.axis, [read] * len(call.out_shapes))
        operands = call.operands
        for index, (operand, demand) in enumerate(zip(operands, demands, strict=True)):
            place = find_axis(operand.label, cut.stream.axis)
            if place is not None and operand.stream and demand == read:
                operands[index] = self.align(operand, with_cut(operand.label, place, goal))
        return call.with_operands(operands)

    def note_return(self, node: Node, operand: Operand, at: tuple[int, int]) -> None:
        """Remember why tokens come back before a call, once for each call."""
        source = getattr(operand, "node", None)
        reason = return_reason(self.view, node, operand, at, source)
        if reason is not None and reason not in self.barriers:
            self.barriers.append(reason)

    def run_barrier(self, node: Node, because: str = "no rule") -> Any:
        """Run a call at full length, after restoring every operand, and say so."""
        call = self.call(node)
        where = module_path(node) or node.name
        reason = f"{node.target} needs all tokens ({because}): they are restored before it"
        self.barriers.append(Rejection("barrier", where, reason, source=source_line(node)))
        operands = []
        for operand in call.operands:
            for at in [
                (d, p)
                for d, dim in enumerate(operand.label)
                for p, factor in enumerate(dim)
                if factor.cut is not None
            ]:
                operand = self.restore(operand, at, because)
            operands.append(operand)
        self.now.pop(node, None)
        return call.with_operands(operands).execute()

    def run_output(self, node: Node) -> Any:
        """The graph's outputs at the lengths they had."""
        return tree_map(
            lambda leaf: self.full_length(leaf) if isinstance(leaf, Node) else leaf,
            node.args[0],
            is_leaf=lambda leaf: isinstance(leaf, Node),
        )

    def full_length(self, node: Node) -> Any:
        """A node's value with every shortened factor restored (unless it may stay short)."""
        if node not in self.now or node in self.keep_short:
            return self.env[node]
        shape = tuple(fake_value(node).shape)
        operand: Operand = NodeOperand(self.label(node), shape, self.env[node], True, node=node)
        for d, dim in enumerate(operand.label):
            for p, factor in enumerate(dim):
                if factor.cut is not None:
                    operand = self.restore(operand, (d, p), "a graph output")
        return operand.value

    def act(self, node: Node, value: Any) -> Any:
        """Carry out the edits at a node, in order: later users see the shortened value."""
        for action in self.actions.get(node, []):
            if self.env.get(node) is not value:
                self.env[node] = value
            try:
                value = self.reduce(node, value, action)
            except Unalignable as reason:
                because = f"the values that the edit reads or changes do not line up: {reason}"
                where = module_path(node) or node.name
                refused = Rejection("unalignable", where, because, source=source_line(node))
                raise ReplayRefused(refused, action.owner) from reason
        return self.restore_tail(node, value)

    def reduce(self, node: Node, value: Any, action: Action) -> Any:
        """A node's value shortened by one edit; its label follows."""
        label = self.label(node)
        reduction = action.reduce(self, node, value)
        at = find_axis(label, reduction.axis)
        if at is None or label[at[0]][at[1]].cut is not reduction.parent:
            raise Unalignable(f"{node.name} does not carry the reduction's parent")
        if reduction.parent is None:
            self.found_whole[action.owner] = node
        reduction.memo["saved_label"] = label
        goal = with_cut(label, at, reduction)
        operand = NodeOperand(label, tuple(fake_value(node).shape), value, True, node=node)
        with owned_by(reduction.owner):
            value = self.align(operand, goal).value
        self.now[node] = (goal,)
        return value

    def restore_tail(self, node: Node, value: Any) -> Any:
        """Write pruned tokens back where the stream's last values are needed at full length."""
        if node not in self.now:
            return value
        (label,) = self.now[node][:1]
        for stream in self.view.streams:
            at = find_axis(label, stream.axis)
            cut = None if at is None else label[at[0]][at[1]].cut
            if at is None or cut is None or not leaves_values(cut):
                continue
            needed = stream.demand.get(node)
            if needed is None or needed.extent <= Extent.AT or node is not self.tail(stream, cut):
                continue
            shape = tuple(fake_value(node).shape)
            operand: Operand = NodeOperand(label, shape, value, True, node=node)
            operand = self.restore(operand, at, "the end of the stream")
            self.now[node] = (operand.label,)
            value = operand.value
        return value

    def read_reduction(self, cut: ReadCut, parent: Reduction | None) -> Reduction:
        """The exact cut below a parent: the slots that stand for the positions read.

        Behind the first value that was cut the parent is that cut itself.
        """
        if parent is not None and parent.read == cut.positions and parent.axis is cut.stream.axis:
            return parent
        key = (cut.owner, "read", parent)
        if key in self.memo:
            return self.memo[key]
        stream = cut.stream
        with owned_by(cut.owner):
            full = self.size(stream.axis.size) if parent is None else parent.count
            start = run_start(cut.positions, full, parent)
            count = len(cut.positions)
            if start is not None:
                how: Gather | Slice = Slice(start)
            else:
                how = Gather(self.read_index(cut, parent))
            device = fake_value(stream.birth).device
            reduction = Reduction(
                stream.axis,
                stream.batch,
                full,
                count,
                how,
                parent,
                sizes=None,
                read=cut.positions,
                owner=cut.owner,
                device=device,
            )
        self.memo[key] = reduction
        return reduction

    def read_index(self, cut: ReadCut, parent: Reduction | None) -> torch.Tensor:
        """`[batch or 1, positions]` places of the positions read, among the parent's tokens."""
        full = self.size(cut.stream.axis.size)
        device = fake_value(cut.stream.birth).device
        columns = []
        for position in cut.positions:
            if isinstance(position.at, Node):
                columns.append(self.value_of(position.at).to(torch.long).reshape(-1, 1) % full)
            else:
                at = position.at if position.at >= 0 else full + position.at
                columns.append(torch.full((1, 1), at, dtype=torch.long, device=device))
        rows = next((c.shape[0] for c in columns if c.shape[0] != 1), 1)
        index = torch.cat([c.expand(rows, 1) for c in columns], 1)
        for step in parent.steps_from(None) if parent is not None else []:
            index = place_among(step, index)
        return index

    def slots(self, cut: Any, positions: tuple[Any, ...]) -> list[int] | None:
        """Where an exact cut holds these positions."""
        return cut.slots(positions)
