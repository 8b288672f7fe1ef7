"""Random trials of an example: sizes, values, and the cuts to make in its token axis."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from .rule_language import Example, L, S, T, named_sizes

CLAIMS = ("select", "permutation", "merge", "dense", "prune")


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
    sampled = [at for at, t in enumerate(with_tokens) if {*"b0"} & {*t.letters()} == {"b"}]
    main = chance.choice(sampled or [0])
    batched = bool(sampled) and sizes["b"] > 1
    shared = claim != "prune" and any("b" not in t.letters() for t in with_tokens)
    rows = sizes["b"] if batched and not shared and chance.random() < 0.8 else 1
    levels, count = [], n
    for _ in range(chance.choice([1, 1, 2])):
        fewer = count if claim == "permutation" else chance.choice([1, chance.randint(1, count)])
        levels.append(draw_level(rows, count, fewer, claim, chance))
        count = fewer
    sides = frozenset(
        at
        for at, spec in enumerate(with_tokens)
        if at != main and (chance.random() < 0.5 or (rows > 1 and "b" not in spec.letters()))
    )
    dtype = torch.float64 if chance.random() < 0.5 else torch.float32
    integers = any(spec.kind not in ("float", "share") for spec in with_tokens)
    seed, latest = chance.randint(0, 10_000), integers or chance.random() < 0.5
    return Trial(example, target, sizes, claim, compose_sizes(levels), dtype, sides, seed, latest)


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
    elif spec.kind in ("float", "share"):
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


def math_size(trial: Trial, group: list[str]) -> int:
    """The size of a dimension of several letters."""
    size = 1
    for letter in group:
        size *= trial.size(letter)
    return size


def plain_argument(leaf: Any, trial: Trial) -> Any:
    """An argument that is no tensor, with its sizes."""
    if isinstance(leaf, S):
        return [math_size(trial, group) for group in T(leaf.dims).groups()]
    return trial.size(leaf.letter) if isinstance(leaf, L) else leaf
