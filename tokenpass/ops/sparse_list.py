"""What the operators of activation sparsity share: lists of active entries, inputs of their text.

A list is `index` int32 [entries] and `count` int32 [1] on the device: the first `count` places of
`index` name the active entries in ascending order, what lies behind is unspecified. Sizes stay
static, so that nothing is data-dependent to a compiler.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch
from torch import Tensor

from tokenpass.errors import CallError
from tokenpass.ops.operator import size_expr
from tokenpass.ops.pointwise import Call, check_text, evaluate, parse, parts

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

PROLOGUES = ("a0", "relu(a0)", "mul(square(relu(a0)), a1)", "mul(silu(relu(a0)), add(a1, a2))")
"""Texts that examples use before an operator."""

EPILOGUES = ("y", "add(y, a0)", "mul(y, relu(a1))", "add(mul(0.5, y), mul(a0, a1))")
"""Texts that examples use behind one."""


def check_list(operator: str, index: Tensor, count: Tensor, entries: int | torch.SymInt) -> None:
    """Raises ValueError unless (index, count) is a list over `entries`."""
    if index.dtype != torch.int32 or index.dim() != 1 or index.shape[0] != entries:
        raise ValueError(
            f"tokenpass::{operator}: index must be int32 [{entries}], "
            f"got {index.dtype} {tuple(index.shape)}"
        )
    if count.dtype != torch.int32 or count.dim() != 1 or count.shape[0] != 1:
        raise ValueError(
            f"tokenpass::{operator}: count must be int32 [1], "
            f"got {count.dtype} {tuple(count.shape)}"
        )


def check_matrix(
    operator: str, name: str, value: Tensor, shape: tuple[int | torch.SymInt | None, ...]
) -> None:
    """Raises ValueError unless `value` is floating point of `shape`; None stands for any size."""
    wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    if (
        value.dtype not in DTYPES
        or value.dim() != len(shape)
        or any(w is not None and w != s for w, s in zip(shape, value.shape, strict=True))
    ):
        raise ValueError(
            f"tokenpass::{operator}: {name} must be float32, float16 or bfloat16 {wanted}, "
            f"got {value.dtype} {tuple(value.shape)}"
        )


def check_inputs(
    operator: str,
    name: str,
    inputs: Sequence[Tensor],
    text: str,
    size: tuple[int | torch.SymInt, int | torch.SymInt],
    computed: bool,
) -> None:
    """Raises ValueError unless each input is a matrix of `size`, or 1 where that repeats.

    Also where `text` (the argument `name`) does not parse, or reads what there is not.
    """
    for place, value in enumerate(inputs):
        check_matrix(operator, f"input a{place} of {name}", value, (None, None))
        if any(got not in (1, want) for got, want in zip(value.shape, size, strict=True)):
            raise ValueError(
                f"tokenpass::{operator}: input a{place} of {name} must be "
                f"[{size[0]} or 1, {size[1]} or 1], got {tuple(value.shape)}"
            )
    check_text(operator, name, text, len(inputs), computed)


def common_size(
    operator: str, inputs: Sequence[Tensor]
) -> tuple[int | torch.SymInt, int | torch.SymInt]:
    """Rows and columns of what the inputs give together. Raises ValueError without inputs."""
    if not inputs or any(value.dim() != 2 for value in inputs):
        raise ValueError(
            f"tokenpass::{operator}: inputs must be one or more matrices, "
            f"got {[tuple(value.shape) for value in inputs]}"
        )
    rows, columns = (
        next((value.shape[at] for value in inputs if value.shape[at] != 1), 1) for at in (0, 1)
    )
    return rows, columns


def evaluated(
    text: str,
    inputs: Sequence[Tensor],
    size: tuple[int | torch.SymInt, int | torch.SymInt],
    computed: Tensor | None = None,
) -> Tensor:
    """What `text` gives, float32 [rows, columns]."""
    return evaluate(parse(text), inputs, computed).expand(size)


def listed(operator: str, index: Tensor, count: Tensor) -> Tensor:
    """The active entries, int64 [count]; waits for the device.

    Raises CallError where the count or an index is out of range.
    """
    entries, active = index.shape[0], int(count)
    if not 0 <= active <= entries:
        raise CallError(count_out_of_range(operator, active, entries))
    places = index[:active].long()
    if active and not 0 <= int(places.min()) <= int(places.max()) < entries:
        raise CallError(index_out_of_range(operator, entries))
    return places


def count_out_of_range(operator: str, count: int, entries: int) -> str:
    """What is said of a list that is longer than there are entries."""
    return f"tokenpass::{operator}: count is {count}, expected 0 to {entries}"


def index_out_of_range(operator: str, entries: int) -> str:
    """What is said of a list that names what there is not."""
    return f"tokenpass::{operator}: an index is not within 0 to {entries - 1}"


def text_calls(text: str) -> int:
    """Calls into torch that evaluating a text makes."""
    return sum(isinstance(part, Call) for part in parts(parse(text)))


def product(*sizes: int | torch.SymInt) -> sympy.Expr:
    """The product of sizes as an expression."""
    result: sympy.Expr = sympy.Integer(1)
    for size in sizes:
        result = result * size_expr(size)
    return result


def example_inputs(
    generator: torch.Generator,
    dtype: torch.dtype,
    choice: tuple[int, int],
    size: tuple[int, int],
) -> list[Tensor]:
    """Three inputs for an example's text; `choice` says which of them are repeated, and how."""
    inputs = [torch.randn(size, generator=generator) for _ in range(3)]
    which, how = choice
    if which < 3 and how < 3:
        rows, columns = size
        shape = ((1, columns), (rows, 1), (1, 1))[how]
        inputs[which] = torch.randn(shape, generator=generator)
    return [value.to(dtype) for value in inputs]


def choose(generator: torch.Generator, *counts: int) -> list[int]:
    """A number below each count; drawn before anything that depends on sizes."""
    return [int(torch.randint(0, count, (), generator=generator)) for count in counts]
