"""The inputs of a kernel's pointwise text: their declarations, their reading, their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenpass.codegen.base import Argument
from tokenpass.codegen.cpp.pointwise import statements
from tokenpass.codegen.cpp.template import POINTER, SIZE, STORED
from tokenpass.ops.pointwise import Computed, Expression, Input, parse

COLUMN = "_column"
NOTHING = "nothing"


def described(inputs: Sequence[Argument]) -> str:
    """How inputs are stored, as one parameter: `float.bf16_column` for a matrix and a column."""
    kinds = (STORED[one.dtype] + COLUMN * (one.shape[1] == 1) for one in inputs)
    return ".".join(kinds) or NOTHING


def canonical(text: str) -> str:
    """The one spelling of a text, as a parameter."""
    return str(parse(text))


@dataclass(frozen=True)
class Inputs:
    """The inputs of one text in C++: `a0` and its row stride `a0_row`, `a1` and so on.

    `kinds` is what `described` gave; `letter` tells two lists of one kernel apart.
    """

    kinds: str
    letter: str = "a"

    @property
    def each(self) -> tuple[str, ...]:
        """The kind of every input."""
        return () if self.kinds == NOTHING else tuple(self.kinds.split("."))

    def _stored(self, at: int) -> str:
        return self.each[at].removesuffix(COLUMN)

    @property
    def pointers(self) -> str:
        """Declarations of addresses, each followed by a comma."""
        return "".join(
            f"const {self._stored(at)} *{self.letter}{at}, " for at in range(len(self.each))
        )

    @property
    def declarations(self) -> str:
        """Declarations of addresses and row strides, each followed by a comma."""
        return "".join(
            f"const {self._stored(at)} *{self.letter}{at}, int64_t {self.letter}{at}_row,\n    "
            for at in range(len(self.each))
        )

    @property
    def names(self) -> str:
        """What passes all declarations on, each followed by a comma."""
        return "".join(f"{n}, {n}_row, " for n in self._names())

    def row(self, row: str) -> str:
        """What passes the addresses of one row, each followed by a comma."""
        return "".join(f"{n} + {row} * {n}_row, " for n in self._names())

    def _names(self) -> list[str]:
        return [f"{self.letter}{at}" for at in range(len(self.each))]

    @property
    def argument_kinds(self) -> tuple[Any, ...]:
        """The kinds of what `addresses` gives."""
        return (POINTER, SIZE) * len(self.each)

    def function(self, name: str, text: str, *, by_index: bool = False) -> str:
        """`name<part>(y, a0, ..., from, n)`: the text on W columns, or on n where `part`.

        `from` is the first column, or with `by_index` the list of columns.
        """

        def read(leaf: Input | Computed) -> str:
            if isinstance(leaf, Computed):
                return "y"
            name = f"{self.letter}{leaf.index}"
            if self.each[leaf.index].endswith(COLUMN):
                return f"all(one({name}))"
            return f"gather({name}, from, n)" if by_index else f"take<part>({name} + from, n)"

        place = "const int32_t *from" if by_index else "int64_t from"
        expression: Expression = parse(text)
        lines = "".join(f"    {line}\n" for line in statements(expression, read))
        return (f"// {text}\n" if len(text) < 90 else "") + (
            f"template <bool part> static inline vf {name}(\n"
            f"    vf y, {self.pointers}{place}, int64_t n) {{\n{lines}    return result;\n}}\n\n"
        )


def rows_of(value: Tensor) -> Tensor:
    """`value`, or a copy where its rows are not contiguous."""
    return value if value.shape[1] <= 1 or value.stride(1) == 1 else value.contiguous()


def addresses(inputs: Sequence[Tensor]) -> list[int]:
    """Address and row stride of each of `rows_of(inputs)`; a repeated row has stride 0."""
    return [
        number
        for one in inputs
        for number in (one.data_ptr(), one.stride(0) if one.shape[0] > 1 else 0)
    ]
