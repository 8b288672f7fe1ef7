"""The words in which an example call of an operator is written.

`b` counts samples, `n` tokens, digits are sizes, all other letters count something else;
`T("(b n) c")` is a tensor whose first dimension is batch x tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.utils._pytree import tree_map

Tokens = Literal[
    "apart",
    "samples",
    "weights",
    "shape",
    "mixed",
    "pooled",
    "product",
    "restored",
    "read",
    "free",
]


@dataclass(frozen=True)
class T:
    """A tensor argument: dimensions by letters.

    `kind`: float, variance (not negative), complex, bool, int, keep (a mask that hides no row
    whole), share (a softmax over the tokens), range (all places of one letter, in order), or a
    letter to index.
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

    apart: selecting commutes with the call. samples: so it does, but samples are brought together,
    so that tokens cut for each sample by itself are restored. weights: apart in the first operand,
    restored in the others. shape: apart, and no value enters. mixed: tokens are summed, by a law of
    sizes. pooled: so they are, and without sizes they are restored. product: mixed, but restored
    where both sides hold sums. restored: the call needs the full length. read: so it does, and
    tokens at fixed places alone are demanded. free: no token enters. `out`: the letters that the
    output's dimensions count, `?` for something new, where no other claim tells.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tokens: Tokens = "apart"
    out: str | None = None

    def tensors(self) -> list[T]:
        """All tensor arguments, in order."""
        found: list[T] = []
        tree_map(lambda leaf: found.append(leaf), [self.args, dict(self.kwargs)])
        return [leaf for leaf in found if isinstance(leaf, T)]


def ex(*args: Any, tokens: Tokens = "apart", out: str | None = None, **kwargs: Any) -> Example:
    """An example call."""
    return Example(args, kwargs, tokens, out)


def named_sizes(argument: Any) -> list[str]:
    """Letters in a shape or size argument."""
    if isinstance(argument, S):
        return T(argument.dims).letters()
    if isinstance(argument, list | tuple):
        return [letter for item in argument for letter in named_sizes(item)]
    return [argument.letter] if isinstance(argument, L) else []


X, TWO_D = T("b n c"), T("(b n) c")
LAYOUTS = ("b n c", "n b c", "b c n", "n c", "(b n) c", "(n b) c", "b (c n)", "b h n n", "n")


def shares(*rest: Any, kept: bool, **kwargs: Any) -> Example:
    """A call on probabilities, which merged tokens sum: such sums are `kept`, or restored."""
    return ex(T("b m n", "share"), *rest, tokens="apart" if kept else "restored", **kwargs)


def alone(*rest: Any, kind: str = "float", kept: bool = False, **kwargs: Any) -> list[Example]:
    """One operand, tokens anywhere; `kept`: sums over merged tokens stay such sums."""
    found = [ex(T(dims, kind), *rest, **kwargs) for dims in LAYOUTS]
    return [*found, shares(*rest, kept=kept, **kwargs)] if kind == "float" else found


def pairs(
    kind: str = "float",
    other: str | None = None,
    *rest: Any,
    kept: bool = False,
    **kwargs: Any,
) -> list[Example]:
    """Two operands that broadcast: equal, missing dimensions, size 1, batch on one side only."""
    shapes = [
        ("b n c", "b n c"),
        ("b n c", "n c"),
        ("n c", "b n c"),
        ("b n c", "c"),
        ("b n c", "b 1 c"),
        ("b n c", "1 n 1"),
        ("b n 1", "1 n c"),
        ("n b c", "n 1 c"),
        ("b h n m", "1 1 n m"),
        ("(b n) c", "(b n) c"),
        ("b n (h d)", "n (h d)"),
        ("b c n", "b c n"),
    ]
    other = other or kind
    found = [ex(T(a, kind), T(b, other), *rest, **kwargs) for a, b in shapes]
    if kind == "float":
        found.append(shares(T("b m 1", other), *rest, kept=kept, **kwargs))
    return found


def along(*rest: Any, fresh: bool) -> list[Example]:
    """`f(x, dim)`: over tokens (restored) and over something else; is what it counts then new?"""
    calls = [
        ("b n c", 1, "restored"),
        ("b n c", -1, "apart"),
        ("n b c", 0, "restored"),
        ("b c n", 1, "apart"),
        ("n b c", 1, "samples"),
        ("(b n) c", 1, "apart"),
    ]
    return [
        ex(T(dims), *rest, dim, tokens=tokens, out=renewed(dims, dim) if fresh else dims)
        for dims, dim, tokens in calls
    ]


def renewed(dims: str, dim: int) -> str:
    """The letters with something new in one dimension."""
    groups = [f"({' '.join(group)})" for group in T(dims).groups()]
    groups[dim] = "?"
    return " ".join(groups)
