"""What the templates of activation sparsity share: what they take, and what a status means."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from tokenpass.codegen.base import Argument, Problem
from tokenpass.codegen.cpp.template import POINTER, SIZE, STORED, CppTemplate
from tokenpass.codegen.packed import PACKED
from tokenpass.edits import Rejection
from tokenpass.errors import CallError, InternalError
from tokenpass.ops.sparse_list import count_out_of_range, index_out_of_range

EXPORT = 'extern "C" __attribute__((visibility("default"))) int'

LONG_LIST, BAD_INDEX, CHANGED, NO_MEMORY = 1, 2, 3, 4
"""What a kernel returns; 0 where all is well."""

PACKED_KINDS = (POINTER, SIZE, POINTER, POINTER, SIZE, SIZE)
"""The kinds of `Packed.arguments`."""

MOST_ROWS = 8
"""Rows of y that one pass over the weight serves."""


class SparseTemplate(CppTemplate):
    """Takes all that the operator's own check takes, up to 32-bit sizes.

    Every sum has one order, whatever the thread count: threads share outputs, and parts of the list
    whose number depends on sizes alone.
    """

    any_threads: ClassVar[bool] = True

    def supports(self, problem: Problem) -> Rejection | None:
        for argument in problem.arguments:
            for one in argument if isinstance(argument, tuple) else (argument,):
                if isinstance(one, Argument) and any((size or 0) >= 2**31 for size in one.shape):
                    return Rejection("kernel_shape", self.name, f"{one.shape} exceeds 32 bits")
        return None


def packed_parameters(stored_as: str) -> str:
    """The exported function's parameters for `Packed.arguments`, each with a comma behind it."""
    return (
        f"const {stored_as} *packed, int64_t packed_row, const {stored_as} *weight,\n"
        f"    const {stored_as} *known, int64_t step, int64_t probes,"
    )


def with_packed(call: Callable[[tuple[int, ...]], int], weight: Tensor) -> int:
    """The status of a kernel that reads a weight's copy; a changed weight is packed anew."""
    status = call(PACKED.held(weight).arguments)
    if status == CHANGED:
        status = call(PACKED.renewed(weight).arguments)
    return status


def require_memory(operator: str, status: int) -> None:
    """Raises MemoryError where a kernel found none for what it computes in between."""
    if status == NO_MEMORY:
        raise MemoryError(f"tokenpass::{operator}: no memory for what lies between")


def require_list(operator: str, status: int, count: int, entries: int) -> None:
    """Raises CallError for the status that a kernel gave for its list; MemoryError likewise."""
    require_memory(operator, status)
    if status == LONG_LIST:
        raise CallError(count_out_of_range(operator, count, entries))
    if status == BAD_INDEX:
        raise CallError(index_out_of_range(operator, entries))


def stored(name: str, argument: Argument | None) -> str:
    """How a tensor that every call has is stored."""
    if argument is None:
        raise InternalError(f"{name}: a problem without a tensor that every call has")
    return STORED[argument.dtype]


def block_of(argument: Argument | None) -> int:
    """Rows of one pass for a tensor of [rows, ...]."""
    return block(argument.shape[0] if argument is not None else None)


def block(rows: int | None) -> int:
    """Rows of one pass; as many as there may be where they are not known."""
    return MOST_ROWS if rows is None else max(1, min(rows, MOST_ROWS))
