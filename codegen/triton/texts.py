"""The inputs of a Triton kernel's pointwise text: how they are declared, passed and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Literal

from torch import Tensor

from tokenpass.codegen.base import Argument, Problem
from tokenpass.codegen.triton.pointwise import statements
from tokenpass.codegen.triton.sizes import MAX_GRID_Y, TYPES
from tokenpass.edits import Rejection
from tokenpass.errors import InternalError
from tokenpass.ops.pointwise import Computed, Input, parse

COLUMN = "_column"
NOTHING = "nothing"
MOST_ROWS = 8
"""Rows of a product that one pass over the weight serves."""
REACH = 2**31 - 1
"""Offsets within one tensor of activations are 32-bit in the kernels."""

FUNCTION = Template("""\
@triton.jit
def $name($computed$parameters row, column, inside):
    $lines
    return tl.where(inside, result, 0.0)
""")


def described(inputs: Sequence[Argument]) -> str:
    """How inputs are stored, as one parameter: `fp32.bf16_column` for a matrix and a column."""
    return ".".join(TYPES[one.dtype] + COLUMN * (one.shape[1] == 1) for one in inputs) or NOTHING


def canonical(text: str) -> str:
    """The one spelling of a text, as a parameter."""
    return str(parse(text))


@dataclass(frozen=True)
class Inputs:
    """The inputs of one text in Triton: an address and a row stride each, and what reads them.

    `name` is the text's, `kinds` what `described` gave.
    """

    name: Literal["prologue", "epilogue"]
    kinds: str

    @property
    def each(self) -> tuple[str, ...]:
        """The kind of every input."""
        return () if self.kinds == NOTHING else tuple(self.kinds.split("."))

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters for the inputs: `p0, p0_row, p1, ...`, `e0, ...` in an epilogue."""
        letter = self.name[0]
        return tuple(f"{letter}{at}{end}" for at in range(len(self.each)) for end in ("", "_row"))

    @property
    def parameters(self) -> str:
        """The parameters' text, each with a comma behind it."""
        return "".join(f"{name}, " for name in self.names).rstrip()

    @property
    def signature(self) -> dict[str, str]:
        """The parameters' types, for a compiler with no arguments at hand."""
        kinds = [kind.removesuffix(COLUMN) for kind in self.each]
        types = [text for kind in kinds for text in (f"*{kind}", "i32")]
        return dict(zip(self.names, types, strict=True))

    def function(self, text: str) -> str:
        """`name([y,] inputs, row, column, inside)`: the text on a block, 0 where not `inside`."""

        def read(leaf: Input | Computed) -> str:
            if isinstance(leaf, Computed):
                return "y"
            name = f"{self.name[0]}{leaf.index}"
            column = "0 * column" if self.each[leaf.index].endswith(COLUMN) else "column"
            place = f"{name} + row * {name}_row + {column}"
            return f"tl.load({place}, mask=inside, other=0.0).to(tl.float32)"

        return FUNCTION.substitute(
            name=self.name,
            computed="y, " if self.name == "epilogue" else "",
            parameters=self.parameters,
            lines="\n    ".join(statements(parse(text), read)),
        )


def rows_of(value: Tensor) -> Tensor:
    """`value` [rows, columns], or a copy where its rows are not contiguous, or 2^31 apart."""
    near = (value.shape[0] - 1) * value.stride(0) + value.shape[1] <= REACH
    return value if near and (value.shape[1] <= 1 or value.stride(1) == 1) else value.contiguous()


def lines(inputs: Sequence[Tensor]) -> list[Tensor | int]:
    """Each input and its row stride, as a kernel takes them; a repeated row has stride 0."""
    given: list[Tensor | int] = []
    for one in map(rows_of, inputs):
        given += (one, one.stride(0) if one.shape[0] > 1 else 0)
    return given


def beyond(name: str, problem: Problem, rows: Argument | None) -> Rejection | None:
    """Why a kernel of activation sparsity cannot run a call with `rows`; None where it can.

    Weights are reached by 64-bit offsets, what has a row for each of `rows` by 32-bit ones.
    """
    sizes = [
        size or 0
        for argument in problem.arguments
        for one in (argument if isinstance(argument, tuple) else (argument,))
        if isinstance(one, Argument)
        for size in one.shape
    ]
    count = (rows.shape[0] if rows is not None else None) or 1
    if count > MAX_GRID_Y or count * max(sizes, default=0) > REACH:
        return Rejection(
            "kernel_shape", name, f"{count} rows of up to {max(sizes)} need larger offsets"
        )
    return None


def kind_of(name: str, argument: Argument | None) -> str:
    """How a tensor that every call has is stored."""
    if argument is None:
        raise InternalError(f"{name}: a problem without a tensor that every call has")
    return TYPES[argument.dtype]


def rows_at_once(argument: Argument | None) -> int:
    """Rows of one pass for a tensor of [rows, ...]: a power of two."""
    rows = argument.shape[0] if argument is not None else None
    most = MOST_ROWS if rows is None else max(1, min(rows, MOST_ROWS))
    return 1 << (most - 1).bit_length()
