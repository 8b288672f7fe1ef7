"""The inputs of a kernel's pointwise text: their declarations, their reading, their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tokenpass.codegen.base import Argument
from tokenpass.codegen.cpp.pointwise import statements
from tokenpass.codegen.cpp.template import POINTER, SIZE, STORED
from tokenpass.ops.pointwise import Computed, Input, parse

COLUMN = "_column"
NOTHING = "nothing"


def described(inputs: Sequence[Argument]) -> str:
    """How inputs are stored, as one parameter: `float.bf16_column` for a matrix and a column."""
    kinds = (STORED[one.dtype] + COLUMN * (one.shape[1] == 1) for one in inputs)
    return ".".join(kinds) or NOTHING


def most_rows(inputs: Sequence[Argument]) -> int | None:
    """The rows that inputs give together; None where they are not known."""
    sizes = [one.shape[0] for one in inputs]
    return None if None in sizes else max(size or 0 for size in sizes)


def canonical(text: str) -> str:
    """The one spelling of a text, as a parameter."""
    return str(parse(text))


@dataclass(frozen=True)
class Inputs:
    """The inputs of one text in C++: a struct of addresses and row strides, and what reads it.

    `name` is the text's, `kinds` what `described` gave.
    """

    name: Literal["prologue", "epilogue"]
    kinds: str

    @property
    def each(self) -> tuple[str, ...]:
        """The kind of every input."""
        return () if self.kinds == NOTHING else tuple(self.kinds.split("."))

    @property
    def struct(self) -> str:
        """The name of the struct."""
        return f"{self.name.capitalize()}Inputs"

    def _members(self, letter: str) -> list[str]:
        end = "; " if letter == "a" else ", "
        return [
            f"const {kind.removesuffix(COLUMN)} *{letter}{at}{end}int64_t {letter}{at}_row"
            for at, kind in enumerate(self.each)
        ]

    @property
    def argument_kinds(self) -> tuple[Any, ...]:
        """The kinds of what `addresses` gives."""
        return (POINTER, SIZE) * len(self.each)

    @property
    def declarations(self) -> str:
        """The exported function's parameters for the inputs, each with a comma behind it."""
        return "".join(f"{member},\n    " for member in self._members(self.name[0])).rstrip()

    @property
    def given(self) -> str:
        """A statement that makes the struct of the exported function's parameters, `p` or `e`."""
        letter = self.name[0]
        values = (f"{letter}{at}, {letter}{at}_row,\n        " for at in range(len(self.each)))
        return f"const {self.struct} {letter} = {{{''.join(values).rstrip()}}};"

    def function(self, text: str, *, by_index: bool = False) -> str:
        """The struct, and `name<part>(y, in, row, from, n)`: the text on W columns, n where `part`.

        `from` is the first column, or with `by_index` the list of columns.
        """

        def read(leaf: Input | Computed) -> str:
            if isinstance(leaf, Computed):
                return "y"
            line = f"in.a{leaf.index} + row * in.a{leaf.index}_row"
            if self.each[leaf.index].endswith(COLUMN):
                return f"all(one({line}))"
            return f"gather({line}, from, n)" if by_index else f"take<part>({line} + from, n)"

        members = "".join(f"    {member};\n" for member in self._members("a"))
        place = "const int32_t *from" if by_index else "int64_t from"
        lines = "".join(f"    {line}\n" for line in statements(parse(text), read))
        return (
            f"struct {self.struct} {{\n{members}}};\n\n"
            f"template <bool part> static inline vf {self.name}(\n"
            f"    vf y, {self.struct} in, int64_t row, {place}, int64_t n) {{\n"
            f"{lines}    return result;\n}}\n\n"
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
