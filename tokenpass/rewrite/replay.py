"""One replay of a captured graph with all edits of a plan in it.

Every value carries the label that it has now. Values without a cut run as they are. Elsewhere the
operator's rule says which operands must be at full length, what the others must look like, and how
to run; side operands follow the stream. What no rule covers gets restored operands.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import sympy
import torch
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_map

from tokenpass.edits import Rejection
from tokenpass.graph.axis import (
    Label,
    Size,
    Unalignable,
    find_axis,
    has_cut,
    with_cut,
)
from tokenpass.graph.axis_rules import find_rule
from tokenpass.graph.call import Call, Operand, bind
from tokenpass.graph.demand_lattice import Extent, Position
from tokenpass.graph.rule import Rule
from tokenpass.graph.sites import Stream
from tokenpass.graph.view import View
from tokenpass.rewrite.gather import combine, merge, open_factors, take, write_back
from tokenpass.rewrite.reduction import Dense, Gather, Reduction, Segment, Slice, owned_by
from tokenpass.tracing import fake_value, module_path, source_line

aten = torch.ops.aten


class ReplayRefused(Exception):
    """The edits cannot be carried out soundly; carries the reason and the edit that it concerns."""

    def __init__(self, rejection: Rejection, owner: int | None) -> None:
        super().__init__(str(rejection))
        self.rejection = rejection
        self.owner = owner


@dataclass(frozen=True, eq=False)
class ReadCut:
    """An exact cut: values of this stream that are read at `positions` alone hold nothing else."""

    stream: Stream
    positions: tuple[Position, ...]
    nodes: frozenset[Node]
    owner: int


Action = Callable[["Replay", Node, Any], Reduction]


class Replay(Interpreter):
    """Interprets the captured graph with edits. `actions` make a reduction at a site's node."""

    def __init__(
        self,
        view: View,
        actions: Mapping[Node, list[Action]],
        read_cuts: tuple[ReadCut, ...] = (),
        keep_short: frozenset[Node] = frozenset(),
    ) -> None:
        super().__init__(view.module, garbage_collect_values=False)
        self.view = view
        self.actions = actions
        self.read_cuts = read_cuts
        self.keep_short = keep_short
        self.now: dict[Node, tuple[Label, ...]] = {}
        self.memo: dict[Any, Any] = {}
        self.symbols: dict[sympy.Symbol, Size] = {}
        self.stream_nodes = stream_values(view)
        self.order = {node: at for at, node in enumerate(view.module.graph.nodes)}

    # values and labels -------------------------------------------------------------------

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

    def value_of(self, node: Node) -> Any:
        """A node's value, computed ahead of its turn if need be."""
        if node not in self.env:
            for source in node.all_input_nodes:
                self.value_of(source)
            self.env[node] = self.run_node(node)
        return self.env[node]

    def label(self, node: Node, output: int = 0) -> Label:
        """The label that a value has now."""
        return self.now[node][output] if node in self.now else self.view.labels.of[node][output]

    def note_symbols(self, node: Node, value: Any) -> None:
        """Remember where the graph's size symbols can be read, so that sizes can be rebuilt."""
        fake = fake_value(node)
        pairs = [(fake, value)]
        if isinstance(fake, torch.Tensor):
            pairs = [(size, value.shape[at]) for at, size in enumerate(fake.shape)]
        for size, now in pairs:
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                self.symbols.setdefault(size.node.expr, now)

    def size(self, size: Size) -> Size:
        """A size of the captured graph as a size of the graph being made."""
        if isinstance(size, int):
            return size
        expr = size.node.expr
        if expr.is_Integer:
            return int(expr)
        names = sorted(expr.free_symbols, key=str)
        return sympy.lambdify(names, expr, "math")(*(self.symbols[name] for name in names))

    def shape(self, label: Label) -> list[Size]:
        """The sizes that a value with this label has now."""
        sizes: list[Size] = []
        for dim in label:
            total: Size = 1
            for factor in dim:
                entries = self.size(factor.axis.size) if factor.cut is None else factor.cut.count
                total = total * entries
            sizes.append(total)
        return sizes

    # calls -------------------------------------------------------------------------------

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
        source, index = node.args
        if source in self.now and isinstance(index, int):
            self.now[node] = (self.now[source][index],)
        return self.env[source][index]

    def run_rule(self, node: Node, rule: Rule, cuts: list[ReadCut]) -> Any:
        """Align operands by the rule, run, and label the outputs."""
        call = self.call(node)
        read = self.run_read(call, rule)
        if read is not None:
            return read
        for index, at in rule.blocked(call):
            operands = call.operands
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
            return NodeOperand(self.label(value), shape, self.env[value], stream, node=value)

        raw = bind(node.target, node.args, node.kwargs)
        bound = {name: tree_map(operand, value) for name, value in raw.items()}
        return self.view.labels.call(node, bound)

    def run_read(self, call: Call, rule: Rule) -> Any:
        """A read at fixed positions of a value that holds just such positions."""
        slots_of = getattr(rule, "read_positions", None)
        if slots_of is None:
            return None
        for index, (dim, place) in rule.blocked(call):
            operand = call.operands[index]
            positions = slots_of(call, dim)
            cut = operand.label[dim][place].cut
            slots = None if positions is None else cut.slots(positions)
            if slots is not None and index == 0 and len(operand.label[dim]) == 1:
                return rule.read_slots(call, dim, slots)  # type: ignore[attr-defined]
        return None

    def shorten_queries(self, call: Call, rule: Rule, cut: ReadCut) -> Call:
        """Shorten the operands whose tokens are the output's to the positions that are read.

        Side operands follow when the operands are aligned.
        """
        (out, *_) = rule.infer(call)
        at = find_axis(out, cut.stream.axis)
        if at is None:
            return call
        goal = self.read_reduction(cut, out[at[0]][at[1]].cut)
        operands = call.operands
        for index in rule.query_operands(call):
            operand = operands[index]
            place = find_axis(operand.label, cut.stream.axis)
            if place is not None and operand.stream:
                operands[index] = self.align(operand, with_cut(operand.label, place, goal))
        return call.with_operands(operands)

    def run_barrier(self, node: Node, because: str = "no rule") -> Any:
        """Run a call at full length, after restoring every operand."""
        call = self.call(node)
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

    # edits -------------------------------------------------------------------------------

    def act(self, node: Node, value: Any) -> Any:
        """Carry out the edits at a node, in order: later users see the shortened value."""
        for action in self.actions.get(node, []):
            if self.env.get(node) is not value:
                self.env[node] = value
            label = self.label(node)
            reduction = action(self, node, value)
            at = find_axis(label, reduction.axis)
            if at is None or label[at[0]][at[1]].cut is not reduction.parent:
                raise Unalignable(f"{node.name} does not carry the reduction's parent")
            goal = with_cut(label, at, reduction)
            operand = NodeOperand(label, tuple(fake_value(node).shape), value, True, node=node)
            with owned_by(reduction.owner):
                value = self.align(operand, goal).value
            self.now[node] = (goal,)
        return self.restore_tail(node, value)

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

    # alignment ---------------------------------------------------------------------------

    def align(self, operand: Operand, target: Label) -> Operand:
        """Shorten an operand as far as `target` says (memoised per operand and reduction)."""
        skip = len(target) - len(operand.label)
        for at, dim in enumerate(operand.label):
            for place, factor in enumerate(dim):
                goal = target[at + skip]
                cut = goal[place].cut if place < len(goal) else None
                if cut is not factor.cut and cut is not None:
                    moved = self.shorten(operand, (at, place), cut, target)
                    return self.align(moved, target)
        return operand

    def shorten(
        self, operand: Operand, at: tuple[int, int], cut: Reduction, target: Label
    ) -> Operand:
        """One factor of one operand brought to a deeper cut."""
        node = getattr(operand, "node", None)
        key = ("short", node, operand.label, at, cut, offers(operand.label, target, cut, self))
        if node is not None and key in self.memo:
            return self.memo[key]
        factor = operand.label[at[0]][at[1]]
        with owned_by(cut.owner):
            if factor.axis.constant:
                out = self.shorten_constant(operand, at, cut)
            elif operand.stream:
                out = operand
                for step in cut.steps_from(factor.cut):
                    place = (at[0] + len(out.label) - len(operand.label), at[1])
                    out = self.reduce_stream(out, place, step, target)
            else:
                out = self.index_side(operand, at, cut, factor.cut, target)
        if node is not None:
            self.memo[key] = out
        return out

    def shorten_constant(self, operand: Operand, at: tuple[int, int], cut: Reduction) -> Operand:
        """Entries that are all equal: any `count` of them will do."""
        if len(operand.label[at[0]]) > 1:
            raise Unalignable("a dimension of several factors is constant along one of them")
        value = operand.value.narrow(at[0], 0, 1)
        sizes = [-1] * value.dim()
        sizes[at[0]] = cut.count
        return self.with_value(operand, value.expand(sizes), with_cut(operand.label, at, cut))

    def with_value(self, operand: Operand, value: torch.Tensor, label: Label) -> Operand:
        """The operand after a step; a batch dimension that it grew enters its label."""
        return replace(operand, value=value, label=label)

    def reduce_stream(
        self, operand: Operand, at: tuple[int, int], step: Reduction, target: Label
    ) -> Operand:
        """One reduction applied to a value of the stream."""
        table = self.view.labels.table
        opened = open_factors(
            operand.value, operand.label, at, step.batch, table, self.shape, target
        )
        how = step.reduce
        if isinstance(how, Slice):
            value = opened.close(opened.value.narrow(opened.token, how.start, step.count))
        elif isinstance(how, Gather):
            value = take(opened, how.index)
        elif not operand.value.is_floating_point():
            value = take(opened, step.local_index())
        elif isinstance(how, Segment):
            value = merge(opened, how)
        else:
            value = combine(opened, how.weights)
        return self.grown(operand, value, at, step, target)

    def index_side(
        self,
        operand: Operand,
        at: tuple[int, int],
        cut: Reduction,
        known: Reduction | None,
        target: Label,
    ) -> Operand:
        """A side operand indexed with the stream's positions (or through the remaining steps)."""
        table, out, place = self.view.labels.table, operand, at
        whole = cut if known is None and not isinstance(cut.reduce, Slice) else None
        for step in [cut] if whole is not None else cut.steps_from(known):
            opened = open_factors(
                out.value, out.label, place, step.batch, table, self.shape, target
            )
            if whole is None and isinstance(step.reduce, Slice):
                value = opened.close(
                    opened.value.narrow(opened.token, step.reduce.start, step.count)
                )
            else:
                value = take(opened, step.position if whole is not None else step.local_index())
            before = len(out.label)
            out = self.grown(out, value, place, step, target)
            place = (place[0] + len(out.label) - before, place[1])
        return out

    def grown(
        self,
        operand: Operand,
        value: torch.Tensor,
        at: tuple[int, int],
        cut: Reduction,
        target: Label,
    ) -> Operand:
        """The shortened operand; a dimension grown for the batch takes the target's factors."""
        label = with_cut(operand.label, at, cut)
        missing = value.dim() - len(label)
        label = ((),) * missing + label
        skip = len(target) - len(label)
        new = []
        for place, dim in enumerate(label):
            offered = target[place + skip] if place + skip >= 0 else ()
            size = value.shape[place]
            took = not dim and offered and not (isinstance(size, int) and size == 1)
            new.append(offered if took else dim)
        return replace(operand, value=value, label=tuple(new))

    def restore(self, operand: Operand, at: tuple[int, int], because: str = "a barrier") -> Operand:
        """The operand with one factor back at full length."""
        node = getattr(operand, "node", None)
        key = ("full", node, operand.label, at)
        if node is not None and key in self.memo:
            return self.memo[key]
        out, factor = operand, operand.label[at[0]][at[1]]
        cut: Reduction | None = factor.cut
        while cut is not None:
            with owned_by(cut.owner):
                out = self.restore_step(out, at, cut, because)
            cut = cut.parent
        if node is not None:
            self.memo[key] = out
        return out

    def restore_step(
        self, operand: Operand, at: tuple[int, int], cut: Reduction, because: str
    ) -> Operand:
        """Undo one reduction."""
        table = self.view.labels.table
        factor = operand.label[at[0]][at[1]]
        value = operand.value
        if factor.extensive and cut.sizes is not None:
            shares = 1.0 / cut.sizes.clamp_min(1.0)
            value = value * cut.spread(shares.to(value.dtype), operand.label, at[0])
        opened = open_factors(value, operand.label, at, cut.batch, table, self.shape)
        if isinstance(cut.reduce, Dense):
            value = combine(opened, cut.reduce.back)
        elif cut.representative is not None:
            value = take(opened, cut.representative)
        elif cut.saved is not None and self.is_like_site(operand, cut):
            value = write_back(opened, cut.saved, cut.local_index())
        elif self.only_protected(operand, cut):
            sizes = list(opened.value.shape)
            sizes[opened.token] = cut.full
            empty = opened.value.new_zeros(sizes)
            value = opened.close(write_back(opened, empty, cut.local_index()))
        else:
            self.refuse_restore(operand, cut, because)
        return replace(operand, value=value, label=with_cut(operand.label, at, cut.parent))

    def is_like_site(self, operand: Operand, cut: Reduction) -> bool:
        """Whether a value is of the kind that was saved when tokens left, in its own layer or later.

        Behind the end of the stream no value is: a head's last norm may be the same operator.
        """
        node, stream = getattr(operand, "node", None), self.stream_of(cut)
        if node is None or stream is None or node not in stream.chain:
            return False
        if node.target is not cut.memo["site"].node.target:
            return False
        end = self.tail(stream, cut)
        return end is not None and self.order[node] <= self.order[end]

    def only_protected(self, operand: Operand, cut: Reduction) -> bool:
        """Whether nothing is read of a value but positions that never leave."""
        node, stream = getattr(operand, "node", None), self.stream_of(cut)
        if node is None or stream is None or node not in stream.demand:
            return False
        demand = stream.demand[node]
        read_alone = demand.extent is Extent.AT
        return read_alone and demand.positions <= stream.protected.positions

    def stream_of(self, cut: Reduction) -> Stream | None:
        """The stream that a reduction shortens."""
        return next((s for s in self.view.streams if s.axis is cut.axis), None)

    def tail(self, stream: Stream, cut: Reduction) -> Node | None:
        """What the pruned site is to its own layer, in the last one: pruned tokens return there."""
        while cut.saved is None and cut.parent is not None:
            cut = cut.parent
        site = cut.memo["site"]
        kind = [node for node in stream.chain if node.target is site.node.target]
        first, last = self.order[site.region.node], self.order[stream.regions[-1].node]
        rank = sum(first < self.order[node] <= self.order[site.node] for node in kind)
        behind = [node for node in kind if self.order[node] > last]
        return behind[min(rank, len(behind)) - 1] if behind else None

    def refuse_restore(self, operand: Operand, cut: Reduction, because: str) -> None:
        """Tokens that left cannot be given back to a value that is not the stream's."""
        node = getattr(operand, "node", None)
        where = (module_path(node) or node.name) if node is not None else "graph"
        raise ReplayRefused(
            Rejection(
                "restore_off_stream",
                where,
                f"{because} needs all tokens of a value that pruned tokens never had",
                "merge tokens here instead, or prune after it",
                source_line(node) if node is not None else "",
            ),
            cut.owner,
        )

    def slots(self, cut: Any, positions: tuple[Any, ...]) -> list[int] | None:
        """Where an exact cut holds these positions."""
        return cut.slots(positions)


@dataclass(frozen=True, eq=False)
class NodeOperand(Operand):
    """An operand that knows its node, so that what is made of it can be remembered."""

    node: Node | None = None


def stream_values(view: View) -> frozenset[Node]:
    """Values that descend from a stream's birth (others are side operands)."""
    found: set[Node] = set()
    for stream in view.streams:
        found |= {stream.birth} | view.downstream(stream.birth)
    return frozenset(found)


def leaves_values(cut: Reduction | None) -> bool:
    """Whether some reduction of a chain can only be undone on the stream itself."""
    while cut is not None:
        if cut.saved is not None and cut.representative is None:
            return True
        cut = cut.parent
    return False


def run_start(positions: tuple[Position, ...], full: Size, parent: Reduction | None) -> Size | None:
    """Where a run of neighbouring constant positions starts; None if it is no run.

    Below an ordered lossy cut only the protected first and last tokens have known places.
    """
    if any(isinstance(p.at, Node) for p in positions):
        return None
    places = [p.at for p in positions]
    if any(b - a != 1 for a, b in pairwise(places)):
        return None
    if parent is None:
        return places[0] if places[0] >= 0 else full + places[0]
    if not parent.ordered or len(places) > 1:
        return None
    if places == [0]:
        return 0
    last = places == [-1] or (
        isinstance(parent.axis.size, int) and places[0] == parent.axis.size - 1
    )
    return parent.count - 1 if last else None


def place_among(step: Reduction, index: torch.Tensor) -> torch.Tensor:
    """Places of the parent's tokens among the tokens that a reduction left."""
    if step.representative is not None:
        where = step.representative
    elif isinstance(step.reduce, Slice):
        return index - step.reduce.start
    elif isinstance(step.reduce, Gather):
        kept = step.reduce.index
        rows = next((t.shape[0] for t in (kept, index) if t.shape[0] != 1), 1)
        # kept places rise: a kept token's place is the number of kept ones before it
        return (kept[:, None, :].expand(rows, -1, -1) < index.expand(rows, -1)[..., None]).sum(-1)
    else:
        raise Unalignable("a dense reduction has no place for a token")
    rows = next((t.shape[0] for t in (where, index) if t.shape[0] != 1), 1)
    return torch.gather(where.expand(rows, -1), 1, index.expand(rows, -1))


def offers(label: Label, target: Label, cut: Reduction, replay: Replay) -> Any:
    """What of the target decides how an operand grows: where the batch would go, and its rank."""
    if cut.batch is None:
        return None
    at = find_axis(target, cut.batch)
    return None if at is None else at[0] - len(target)
