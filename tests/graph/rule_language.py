"""The words in which an example call of an operator is written.

`b` counts samples, `n` tokens, digits are sizes, all other letters count something else;
`T("(b n) c")` is a tensor whose first dimension is batch x tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.utils._pytree import tree_map

Tokens = Literal["apart", "mixed", "restored", "samples", "weights", "free"]


@dataclass(frozen=True)
class T:
    """A tensor argument: dimensions by letters.

    `kind`: float, bool, int, keep (a mask that hides no row whole), share (a softmax over the
    tokens), range (all places of one letter, in order), or a letter to index.
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
    that tokens cut for each sample by itself are restored. weights: apart in the first operand,
    restored in the others. free: no token enters.
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


def named_sizes(argument: Any) -> list[str]:
    """Letters in a shape or size argument."""
    if isinstance(argument, S):
        return T(argument.dims).letters()
    if isinstance(argument, list | tuple):
        return [letter for item in argument for letter in named_sizes(item)]
    return [argument.letter] if isinstance(argument, L) else []


X, TWO_D = T("b n c"), T("(b n) c")
LAYOUTS = ("b n c", "n b c", "b c n", "n c", "(b n) c", "(n b) c", "b (c n)", "b h n n", "n")


def alone(*rest: Any, kind: str = "float", **kwargs: Any) -> list[Example]:
    """One operand, tokens anywhere."""
    return [ex(T(dims, kind), *rest, **kwargs) for dims in LAYOUTS]


def pairs(
    kind: str = "float", other: str | None = None, *rest: Any, **kwargs: Any
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
    return [ex(T(a, kind), T(b, other), *rest, **kwargs) for a, b in shapes]


def along(*rest: Any) -> list[Example]:
    """`f(x, dim)`: over tokens (restored) and over something else."""
    calls = [
        ("b n c", 1, "restored"),
        ("b n c", -1, "apart"),
        ("n b c", 0, "restored"),
        ("b c n", 1, "apart"),
        ("n b c", 1, "samples"),
    ]
    return [ex(T(dims), *rest, dim, tokens=tokens) for dims, dim, tokens in calls]
