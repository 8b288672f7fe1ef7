"""Checks a rule's claim on one call: cuts the token axis, replays, compares with dense."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map

from tokenpass.graph.axis import Axis, Label, factors, has_cut, is_constant
from tokenpass.graph.axis_rules import AXIS_RULES
from tokenpass.graph.labels import Labels
from tokenpass.graph.rules_apart import Factory, Pointwise
from tokenpass.graph.rules_layout import Layout
from tokenpass.graph.sites import Stream
from tokenpass.graph.view import View
from tokenpass.rewrite.reduction import Dense, Gather, Reduction, Segment
from tokenpass.rewrite.replay import Action, Replay
from tokenpass.rewrite.restoring import ReplayRefused

from .rule_language import Example, T, Tokens
from .rule_trial import Level, Trial, draw_trial, make_value, math_size, pick, plain_argument

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Built:
    """The graph of one call: placeholders, the call's node, and the inputs' values."""

    module: GraphModule
    inputs: list[torch.Tensor]
    holders: list[tuple[Node, T]]
    outs: list[Node]
    dense: list[torch.Tensor]


def build(trial: Trial) -> Built:
    """placeholder [-> reshape] -> call -> output, with values in `meta`."""
    graph, generator = Graph(), torch.Generator().manual_seed(trial.seed)
    holders: list[tuple[Node, T]] = []

    def enter(spec: T) -> Node:
        holders.append((placeholder(graph, make_value(spec, trial, generator)), spec))
        return holders[-1][0]

    if not any("n" in spec.letters() for spec in trial.example.tensors()):
        enter(T("b n c"))  # a stream that the call does not read
    outs = build_call(graph, trial, enter)
    graph.output(tuple(outs))
    inputs = [node.meta["val"] for node, _ in holders]
    return Built(GraphModule({}, graph), inputs, holders, outs, [n.meta["val"] for n in outs])


def placeholder(graph: Graph, value: torch.Tensor) -> Node:
    """An input that holds its value."""
    node = graph.placeholder(f"x{len(graph.nodes)}")
    node.meta["val"] = value
    return node


def build_call(graph: Graph, trial: Trial, enter: Callable[[T], Node]) -> list[Node]:
    """The example's call; its outputs. `enter` makes a tensor, one dimension for each letter."""

    def argument(leaf: Any) -> Any:
        if not isinstance(leaf, T):
            return plain_argument(leaf, trial)
        if leaf.kind == "range":
            return call(graph, aten.arange.default, (trial.size(leaf.dims),), {})
        node = enter(leaf)
        if leaf.kind == "share":
            node = call(graph, aten.softmax.int, (node, leaf.letters().index("n")), {})
        if all(len(group) == 1 for group in leaf.groups()):
            return node
        shape = [math_size(trial, group) for group in leaf.groups()]
        return call(graph, aten.reshape.default, (node, shape), {})

    args, kwargs = tree_map(argument, (trial.example.args, dict(trial.example.kwargs)))
    node = call(graph, trial.target, args, kwargs)
    if not isinstance(node.meta["val"], tuple):
        return [node]
    return [pick_output(graph, node, at) for at in range(len(node.meta["val"]))]


def pick_output(graph: Graph, node: Node, at: int) -> Node:
    """One of several outputs."""
    out = graph.call_function(operator.getitem, (node, at))
    out.meta["val"] = node.meta["val"][at]
    return out


def call(graph: Graph, target: Any, args: Any, kwargs: Any) -> Node:
    """A call node that holds its value."""
    node = graph.call_function(target, tuple(args), kwargs)

    def value(leaf: Any) -> Any:
        return leaf.meta["val"] if isinstance(leaf, Node) else leaf

    out = target(*tree_map(value, tuple(args)), **tree_map(value, kwargs))
    node.meta["val"] = tuple(out) if isinstance(out, list | tuple) else out
    return node


def make_view(built: Built, trial: Trial) -> tuple[View, list[Node], Axis, Axis | None]:
    """Facts as analysis would give them, with the tensors that are cut as the stream."""
    labels = Labels(built.module.graph)
    with_tokens = [(node, spec) for node, spec in built.holders if "n" in spec.letters()]
    stream = [item for at, item in enumerate(with_tokens) if at not in trial.sides]
    axis, batch = join_axes(labels, stream)
    first = stream[0][0]
    streams = (Stream(axis, batch, (first,), (), {}, ()),)
    view = View(built.module, labels, (), streams, {}, frozenset(), None, ())
    return view, [node for node, _ in stream], axis, batch


def join_axes(labels: Labels, stream: list[tuple[Node, T]]) -> tuple[Axis, Axis | None]:
    """The token axis, and that of the samples if there is one, that tensors share by letter."""
    axes: dict[str, Axis] = {}
    for node, spec in stream:
        for at, letter in enumerate(spec.letters()):
            if letter in "bn" and labels[node][at]:
                axis = labels[node][at][0].axis
                labels.table.unite(axes.setdefault(letter, axis), axis)
    return axes["n"].root, axes["b"].root if "b" in axes else None


def reductions(trial: Trial, axis: Axis, batch: Axis | None) -> list[Reduction]:
    """The trial's levels as the rewriter's values."""
    chain: list[Reduction] = []
    for level in trial.levels:
        full, count = level.rep.shape[1], level.index.shape[1]
        exact = trial.claim != "prune"
        sized = exact and trial.claim != "permutation"
        chain.append(
            Reduction(
                axis,
                batch,
                full,
                count,
                reducer(trial, level),
                chain[-1] if chain else None,
                latest=(lambda index=level.index: index)
                if trial.claim == "merge" or trial.given_latest
                else None,
                representative=level.rep if exact else None,
                sizes=level.sizes if sized else None,
                ordered=bool((level.index.diff(dim=1) > 0).all())
                and (not chain or chain[-1].ordered),
            )
        )
    return chain


def reducer(trial: Trial, level: Level) -> Gather | Segment | Dense:
    """One level in the form that the claim is about."""
    if trial.claim not in ("merge", "dense"):
        return Gather(level.index)
    full, count = level.rep.shape[1], level.index.shape[1]
    own = torch.gather(level.index, 1, level.rep)
    share = level.rep.new_zeros(level.rep.shape, dtype=torch.float64)
    members = torch.zeros(len(own), count, dtype=torch.float64)
    members = members.scatter_add(1, level.rep, torch.ones_like(share))
    share = 1.0 / torch.gather(members, 1, level.rep)
    if trial.claim == "dense":
        member = torch.nn.functional.one_hot(level.rep, count).double()
        return Dense((member * share[..., None]).transpose(1, 2), member)
    apart = [[i for i in range(full) if i != row[i]] for row in own.tolist()]
    kept = level.index
    moved = torch.tensor(apart, dtype=torch.long).reshape(len(own), full - count)
    return Segment(level.rep, share, kept, moved)


def check_constants(example: Example, target: Any, chance: random.Random) -> None:
    """Assert that entries are equal along every dimension whose label says so.

    Inputs are expanded along letters picked at random, so that their entries are equal there.
    """
    trial = draw_trial(example, target, chance, "prune")
    graph, generator = Graph(), torch.Generator().manual_seed(trial.seed)
    entered: list[tuple[T, list[bool]]] = []

    def enter(spec: T) -> Node:
        value = make_value(spec, trial, generator)
        equal = [chance.random() < 0.6 for _ in spec.letters()]
        entered.append((spec, equal))
        for at, same in enumerate(equal):
            value = value.narrow(at, 0, min(1, value.shape[at])) if same else value
        shape = trial.shape(spec.letters())
        node = call(graph, aten.expand.default, (placeholder(graph, value), shape), {})
        return call(graph, aten.clone.default, (node,), {"memory_format": torch.contiguous_format})

    outs = build_call(graph, trial, enter)
    graph.output(tuple(outs))
    labels, rule = Labels(graph), AXIS_RULES[target]
    moved = isinstance(rule, Layout | Factory) and all(s.kind != "share" for s, _ in entered)
    for node in outs:
        value, label = node.meta["val"], labels[node]
        flat = list(factors(label))
        sizes = [math.prod(factor.axis.size for factor in dim) for dim in label]
        assert sizes == list(value.shape)
        apart = value.reshape([f.axis.size for f in flat])
        for at, factor in enumerate(flat):
            same = apart.narrow(at, 0, min(1, apart.shape[at])).expand_as(apart)
            if factor.axis.constant:
                torch.testing.assert_close(apart, same, equal_nan=True, rtol=1e-5, atol=1e-6)
            elif moved and factor.axis.size > 1 and value.numel() > 0:
                assert not torch.equal(apart, same), "the label should say that entries are equal"
        if isinstance(rule, Pointwise):
            equal = equal_dims(entered, value.dim())
            assert [d for d in equal if label[d] and not is_constant(label[d])] == []


def equal_dims(entered: list[tuple[T, list[bool]]], rank: int) -> list[int]:
    """Dimensions along which all operands are equal when broadcast (those of one letter each)."""
    found = set(range(rank))
    for spec, equal in entered:
        marks = iter(equal)
        groups = [[next(marks) or letter == "1" for letter in group] for group in spec.groups()]
        skip = rank - len(groups)
        found -= {skip + at for at, same in enumerate(groups) if same not in ([True], [])}
    return sorted(found)


class SpyReplay(Replay):
    """Notes what had to be restored before the outputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.restored: list[str] = []

    def restore(self, operand: Any, at: Any, because: str = "a barrier") -> Any:
        if because != "a graph output":
            self.restored.append(because)
        return super().restore(operand, at, because)


def check(trial: Trial) -> None:
    """Assert the claim of the operator's rule on one trial."""
    built = build(trial)
    view, cut_nodes, axis, batch = make_view(built, trial)
    check_letters(trial.example, built, view.labels)
    chain = reductions(trial, axis, batch)
    actions = {
        node: [Action(0, lambda replay, at, value, step=step: step) for step in chain]
        for node in cut_nodes
    }
    short = frozenset(built.outs) if trial.claim == "prune" else frozenset()
    replay = SpyReplay(view, actions, (), short)
    replay.stream_nodes |= frozenset(cut_nodes)
    try:
        got = replay.run(*[value.clone() for value in built.inputs])
    except ReplayRefused:
        assert trial.claim == "prune" and expected(trial) in ("restored", "pooled")
        return
    labels = tuple(replay.label(node) for node in built.outs)
    if trial.claim == "prune":
        check_pruned(trial, built, got, labels, batch)
        return
    if trial.claim == "dense" and not all(finite(dense) for dense in built.dense):
        return  # a product with zero weights makes them NaN
    for value, dense in zip(got, built.dense, strict=True):
        assert_same(value, dense, trial)
    if trial.claim != "dense":
        check_kind(trial, replay, labels)


def check_letters(example: Example, built: Built, labels: Labels) -> None:
    """Assert that the outputs count what the example says, and the same where that is new."""
    if example.out is None:
        return
    known = {
        (letter, factor.axis.root)
        for node, spec in built.holders
        for letter, dim in zip(spec.letters(), labels[node], strict=True)
        for factor in dim
    }
    dims = zip(*(labels[node] for node in built.outs), strict=True)
    for letters, outs in zip(T(example.out).groups(), dims, strict=True):
        counted = [x for x in letters if any(x == letter for letter, _ in known)]
        for dim in outs:
            found = [factor.axis.root for factor in dim]
            if letters == ["?"]:
                assert not {*found} & {root for _, root in known}
                assert found == [factor.axis.root for factor in outs[0]]
            else:
                assert all(pair in known for pair in zip(counted, found, strict=True))


def expected(trial: Trial) -> Tokens:
    """What becomes of the tokens in this trial."""
    tokens = trial.example.tokens
    if tokens in ("shape", "read"):
        return "apart" if tokens == "shape" else "restored"
    if tokens == "samples":
        return "restored" if any(len(level.index) > 1 for level in trial.levels) else "apart"
    if tokens == "weights":
        operands = sum("n" in tensor.letters() for tensor in trial.example.tensors())
        return "restored" if set(range(1, operands)) - trial.sides else "apart"
    if tokens == "product":
        return "mixed" if trial.sides or trial.claim in ("permutation", "prune") else "restored"
    if tokens == "pooled":
        unsized = trial.claim == "permutation"
        return tokens if trial.claim == "prune" else "restored" if unsized else "mixed"
    if any(tensor.kind == "share" for tensor in trial.example.tensors()):
        if trial.claim == "prune":
            return "mixed"
        if trial.claim == "permutation" and tokens == "restored":  # nothing was merged
            return "apart"
    return tokens


def check_kind(trial: Trial, replay: SpyReplay, labels: tuple[Label, ...]) -> None:
    """Whether tokens were restored, and stayed short, as the example says."""
    tokens = expected(trial)
    if not (tokens == "mixed" and trial.claim == "permutation"):  # sums without sizes
        assert bool(replay.restored) == (tokens == "restored"), replay.restored
    if tokens == "apart":
        assert all(has_cut(label) for label in labels), "the output should have fewer tokens"
    if all(spec.kind != "share" for spec in trial.example.tensors()) and tokens != "mixed":
        assert not any(f.extensive for label in labels for f in factors(label))


def check_pruned(
    trial: Trial, built: Built, got: Any, labels: tuple[Label, ...], batch: Axis | None
) -> None:
    """Selecting, then the call: equal to the call, then selecting (where tokens stay apart)."""
    assert expected(trial) != "pooled", "a mean over some tokens is none over all"
    if expected(trial) in ("mixed", "restored"):
        return
    for value, dense, label in zip(got, built.dense, labels, strict=True):
        assert_same(value, select_slowly(dense, label, trial, batch), trial)
        assert has_cut(label) == (expected(trial) == "apart")


def select_slowly(
    dense: torch.Tensor, label: Label, trial: Trial, batch: Axis | None
) -> torch.Tensor:
    """The dense value's tokens at the kept places, by the label's word on where they are."""
    flat = list(factors(label))
    place = [at for at, f in enumerate(flat) if batch is not None and f.axis.root is batch]
    value = dense.reshape([f.axis.size for f in flat])
    for at, factor in enumerate(flat):
        if factor.cut is not None:
            value = pick(value, at, place[0] if place else None, trial.full_index())
    sizes = iter(value.shape)
    shape = []
    for dim in label:
        size = 1
        for _ in dim:
            size *= next(sizes)
        shape.append(size)
    return value.reshape(shape)


def finite(value: torch.Tensor) -> bool:
    """Whether no entry is infinite or NaN."""
    return bool(torch.isfinite(value).all())


def assert_same(got: torch.Tensor, want: torch.Tensor, trial: Trial) -> None:
    """Equal, up to the order of sums for floats."""
    exact = trial.claim in ("select", "permutation", "prune") and trial.example.tokens != "mixed"
    exact = exact and all(spec.kind != "share" for spec in trial.example.tensors())
    tolerance = 1e-12 if exact and trial.dtype is torch.float64 else 2e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
