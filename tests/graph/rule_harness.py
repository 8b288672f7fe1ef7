"""Checks one rule's claim on one operator call: cuts the token axis, replays, compares with dense.

An example is written with letters: `b` counts samples, `n` tokens, digits are sizes, all others
count something else; `T("(b n) c")` is a tensor whose first dimension is batch x tokens.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map

from tokenpass.graph.axis import Axis, Label, factors, has_cut
from tokenpass.graph.labels import Labels
from tokenpass.graph.sites import Stream
from tokenpass.graph.view import View
from tokenpass.rewrite.reduction import Dense, Gather, Reduction, Segment
from tokenpass.rewrite.replay import Action, Replay
from tokenpass.rewrite.restoring import ReplayRefused

Tokens = Literal["apart", "mixed", "restored", "samples", "free"]
CLAIMS = ("select", "permutation", "merge", "dense", "prune")
aten = torch.ops.aten


@dataclass(frozen=True)
class T:
    """A tensor argument: dimensions by letters; `kind`: float, variance, complex, bool, int,
    or a letter to index.
    """

    dims: str
    kind: str = "float"

    def groups(self) -> list[list[str]]:
        """The letters of every dimension."""
        found: list[list[str]] = []
        inside = False
        for word in self.dims.replace("(", " ( ").replace(")", " ) ").split():
            if word in "()":
                inside = word == "("
                found += [[]] if inside else []
            elif inside:
                found[-1].append(word)
            else:
                found.append([word])
        return found

    def letters(self) -> list[str]:
        """All letters in row-major order."""
        return [letter for group in self.groups() for letter in group]


@dataclass(frozen=True)
class S:
    """A shape argument, by letters."""

    dims: str


@dataclass(frozen=True)
class L:
    """A size argument, by its letter."""

    letter: str


@dataclass(frozen=True)
class Example:
    """Arguments of one call, and what becomes of its tokens.

    apart: selecting commutes with the call. mixed: tokens are summed, by a law of sizes.
    restored: the call needs the full length. samples: apart, but samples are brought together, so
    that tokens cut for each sample by itself are restored. free: no token enters.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tokens: Tokens = "apart"

    def tensors(self) -> list[T]:
        """All tensor arguments, in order."""
        found: list[T] = []
        tree_map(lambda leaf: found.append(leaf), [self.args, dict(self.kwargs)])
        return [leaf for leaf in found if isinstance(leaf, T)]


def ex(*args: Any, tokens: Tokens = "apart", **kwargs: Any) -> Example:
    """An example call."""
    return Example(args, kwargs, tokens)


@dataclass(frozen=True, eq=False)
class Level:
    """One shortening: `rep[b, i]` is the new place of token i, `index[b, j]` the token it holds."""

    rep: torch.Tensor
    index: torch.Tensor
    sizes: torch.Tensor


@dataclass(frozen=True, eq=False)
class Trial:
    """One example with sizes, values, and the cuts to make."""

    example: Example
    target: Any
    sizes: dict[str, int]
    claim: str
    levels: tuple[Level, ...]
    dtype: torch.dtype
    sides: frozenset[int]
    seed: int
    given_latest: bool

    def size(self, letter: str) -> int:
        return int(letter) if letter.isdigit() else self.sizes[letter]

    def shape(self, letters: list[str]) -> list[int]:
        return [self.size(letter) for letter in letters]

    def full_index(self) -> torch.Tensor:
        """`[rows, count]` full-length places of the tokens that are left."""
        index = self.levels[0].index
        for level in self.levels[1:]:
            index = torch.gather(index, 1, level.index)
        return index

    def full_rep(self) -> torch.Tensor:
        """`[rows, tokens]` final place of every full-length token."""
        rep = self.levels[0].rep
        for level in self.levels[1:]:
            rep = torch.gather(level.rep, 1, rep)
        return rep


def draw_trial(example: Example, target: Any, chance: random.Random, claim: str) -> Trial:
    """Sizes, classes and values at random; sizes are often equal to one another."""
    letters = {letter for tensor in example.tensors() for letter in tensor.letters()}
    letters |= set(named_sizes([*example.args, *example.kwargs.values()]))
    n = chance.randint(2, 6)
    sizes = {x: chance.choice([1, 2, 3, n, n]) for x in sorted(letters) if not x.isdigit()}
    sizes = {"b": 2, "c": 3, **sizes, "n": n}
    with_tokens = [t for t in example.tensors() if "n" in t.letters()]
    batched = bool(with_tokens) and "b" in with_tokens[0].letters() and sizes.get("b", 1) > 1
    shared = claim != "prune" and any("b" not in t.letters() for t in with_tokens)
    rows = sizes["b"] if batched and not shared and chance.random() < 0.8 else 1
    levels, count = [], n
    for _ in range(chance.choice([1, 1, 2])):
        fewer = count if claim == "permutation" else chance.randint(1, count)
        levels.append(draw_level(rows, count, fewer, claim, chance))
        count = fewer
    sides = frozenset(
        at
        for at, spec in enumerate(with_tokens)
        if at > 0 and (chance.random() < 0.5 or (rows > 1 and "b" not in spec.letters()))
    )
    dtype = torch.float64 if chance.random() < 0.5 else torch.float32
    integers = any(spec.kind != "float" for spec in with_tokens)
    seed, latest = chance.randint(0, 10_000), integers or chance.random() < 0.5
    return Trial(example, target, sizes, claim, compose_sizes(levels), dtype, sides, seed, latest)


def named_sizes(argument: Any) -> list[str]:
    """Letters in a shape or size argument."""
    if isinstance(argument, S):
        return T(argument.dims).letters()
    if isinstance(argument, list | tuple):
        return [letter for item in argument for letter in named_sizes(item)]
    return [argument.letter] if isinstance(argument, L) else []


def draw_level(rows: int, full: int, count: int, claim: str, chance: random.Random) -> Level:
    """Classes of tokens, none empty, with one member that stands for each."""
    reps, indices = [], []
    for _ in range(rows):
        first = chance.sample(range(full), count)
        if chance.random() < 0.5:
            first.sort()
        rep = [first.index(i) if i in first else chance.randrange(count) for i in range(full)]
        reps.append(rep)
        indices.append(first)
    rep = torch.tensor(reps)
    sizes = torch.zeros(rows, count).scatter_add(1, rep, torch.ones(rows, full))
    return Level(rep, torch.tensor(indices), sizes)


def compose_sizes(levels: list[Level]) -> tuple[Level, ...]:
    """Sizes of a later level count full-length tokens."""
    out = levels[:1]
    for level in levels[1:]:
        before = out[-1].sizes
        sizes = torch.zeros_like(level.sizes).scatter_add(1, level.rep, before)
        out.append(Level(level.rep, level.index, sizes))
    return tuple(out)


def make_value(spec: T, trial: Trial, generator: torch.Generator) -> torch.Tensor:
    """Random entries, one dimension for each letter; duplicates along the tokens if merged."""
    letters = spec.letters()
    shape = trial.shape(letters)
    if spec.kind == "bool" or spec.kind == "keep":
        value = torch.rand(shape, generator=generator) < 0.5
    elif spec.kind == "int":
        value = torch.randint(-4, 5, shape, generator=generator)
    elif spec.kind == "variance":
        value = torch.rand(shape, generator=generator, dtype=torch.float64).to(trial.dtype)
    elif spec.kind == "complex":
        value = torch.randn(shape, generator=generator, dtype=torch.complex128)
    elif spec.kind == "float":
        value = torch.randn(shape, generator=generator, dtype=torch.float64).to(trial.dtype)
    else:
        value = torch.randint(0, trial.size(spec.kind), shape, generator=generator)
    if trial.claim not in ("prune", "permutation"):
        source = torch.gather(trial.full_index(), 1, trial.full_rep())
        for at, letter in enumerate(letters):
            if letter == "n":
                value = pick(value, at, letters.index("b") if "b" in letters else None, source)
    if spec.kind == "keep":  # a mask that hides everything from a query makes NaN
        value = value | ~value.any(-1, keepdim=True)
    return value


def pick(value: torch.Tensor, dim: int, batch: int | None, index: torch.Tensor) -> torch.Tensor:
    """`out[.., b, .., j, ..] = value[.., b, .., index[b, j], ..]`, sample by sample."""
    if len(index) == 1:
        return value.index_select(dim, index[0])
    assert batch is not None, "per-sample tokens of a value without samples"
    rows = [
        value.narrow(batch, b, 1).index_select(dim, row) for b, row in enumerate(index.unbind(0))
    ]
    return torch.cat(rows, batch)


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
    inputs: list[torch.Tensor] = []

    def argument(leaf: Any) -> Any:
        if not isinstance(leaf, T):
            return plain_argument(leaf, trial)
        value = make_value(leaf, trial, generator)
        node = graph.placeholder(f"x{len(inputs)}")
        node.meta["val"] = value
        holders.append((node, leaf))
        inputs.append(value)
        if all(len(group) == 1 for group in leaf.groups()):
            return node
        shape = [math_size(trial, group) for group in leaf.groups()]
        return call(graph, aten.reshape.default, (node, shape), {})

    if not any("n" in spec.letters() for spec in trial.example.tensors()):
        argument(T("b n c"))  # a stream that the call does not read
    args = tree_map(argument, trial.example.args)
    kwargs = tree_map(argument, dict(trial.example.kwargs))
    node = call(graph, trial.target, args, kwargs)
    outs = [node]
    if isinstance(node.meta["val"], tuple):
        outs = [pick_output(graph, node, at) for at in range(len(node.meta["val"]))]
    graph.output(tuple(outs))
    return Built(GraphModule({}, graph), inputs, holders, outs, [n.meta["val"] for n in outs])


def pick_output(graph: Graph, node: Node, at: int) -> Node:
    """One of several outputs."""
    out = graph.call_function(operator.getitem, (node, at))
    out.meta["val"] = node.meta["val"][at]
    return out


def math_size(trial: Trial, group: list[str]) -> int:
    """The size of a dimension of several letters."""
    size = 1
    for letter in group:
        size *= trial.size(letter)
    return size


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
    axes: dict[str, Axis] = {}
    for node, spec in stream:
        for at, letter in enumerate(spec.letters()):
            if letter in "bn" and labels[node][at]:
                axis = labels[node][at][0].axis
                labels.table.unite(axes.setdefault(letter, axis), axis)
    axis, batch = axes["n"].root, axes.get("b")
    batch = None if batch is None else batch.root
    first = stream[0][0]
    streams = (Stream(axis, batch, (first,), (), {}, ()),)
    view = View(built.module, labels, (), streams, {}, frozenset(), None, ())
    return view, [node for node, _ in stream], axis, batch


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

    def argument(leaf: Any) -> Any:
        if not isinstance(leaf, T):
            return plain_argument(leaf, trial)
        letters = leaf.letters()
        equal = [chance.random() < 0.6 for _ in letters]
        value = make_value(leaf, trial, generator)
        for at, same in enumerate(equal):
            value = value.narrow(at, 0, min(1, value.shape[at])) if same else value
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["val"] = value
        node = call(graph, aten.expand.default, (node, trial.shape(letters)), {})
        node = call(graph, aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
        if all(len(group) == 1 for group in leaf.groups()):
            return node
        shape = [math_size(trial, group) for group in leaf.groups()]
        return call(graph, aten.reshape.default, (node, shape), {})

    args, kwargs = tree_map(argument, (trial.example.args, dict(trial.example.kwargs)))
    node = call(graph, trial.target, args, kwargs)
    graph.output(node)
    outs = node.meta["val"] if isinstance(node.meta["val"], tuple) else (node.meta["val"],)
    for value, label in zip(outs, Labels(graph).of[node], strict=True):
        assert len(label) == value.dim()
        flat = list(factors(label))
        apart = value.reshape([f.axis.size for f in flat])
        for at, factor in enumerate(flat):
            if factor.axis.constant:
                same = apart.narrow(at, 0, 1).expand_as(apart)
                torch.testing.assert_close(apart, same, equal_nan=True, rtol=1e-5, atol=1e-6)


def plain_argument(leaf: Any, trial: Trial) -> Any:
    """An argument that is no tensor, with its sizes."""
    if isinstance(leaf, S):
        return [math_size(trial, group) for group in T(leaf.dims).groups()]
    return trial.size(leaf.letter) if isinstance(leaf, L) else leaf


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
        assert trial.claim == "prune" and expected(trial) in ("restored", "mixed")
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


def expected(trial: Trial) -> Tokens:
    """What becomes of the tokens in this trial."""
    if trial.example.tokens != "samples":
        return trial.example.tokens
    return "restored" if any(len(level.index) > 1 for level in trial.levels) else "apart"


def check_kind(trial: Trial, replay: SpyReplay, labels: tuple[Label, ...]) -> None:
    """Whether tokens were restored, and stayed short, as the example says."""
    tokens = expected(trial)
    if not (tokens == "mixed" and trial.claim == "permutation"):  # sums without sizes
        assert bool(replay.restored) == (tokens == "restored"), replay.restored
    if tokens == "apart":
        assert all(has_cut(label) for label in labels), "the output should have fewer tokens"


def check_pruned(
    trial: Trial, built: Built, got: Any, labels: tuple[Label, ...], batch: Axis | None
) -> None:
    """Selecting, then the call: equal to the call, then selecting (where tokens stay apart)."""
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
    tolerance = 1e-12 if exact and trial.dtype is torch.float64 else 2e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
