"""What the templates of activation sparsity share: what they take, and what a status means."""

from __future__ import annotations

from typing import ClassVar

from tokenpass.codegen.base import Argument, Problem
from tokenpass.codegen.cpp.template import CppTemplate
from tokenpass.edits import Rejection
from tokenpass.errors import CallError
from tokenpass.ops.sparse_list import count_out_of_range, index_out_of_range

EXPORT = 'extern "C" __attribute__((visibility("default"))) int'


class SparseTemplate(CppTemplate):
    """Takes all that the operator's own check takes, up to 32-bit sizes.

    Every sum has one order, whatever the thread count: threads share outputs, never a sum.
    """

    any_threads: ClassVar[bool] = True

    def supports(self, problem: Problem) -> Rejection | None:
        for argument in problem.arguments:
            for one in argument if isinstance(argument, tuple) else (argument,):
                if isinstance(one, Argument) and any((size or 0) >= 2**31 for size in one.shape):
                    return Rejection("kernel_shape", self.name, f"{one.shape} exceeds 32 bits")
        return None


def require_list(operator: str, status: int, count: int, entries: int) -> None:
    """Raises CallError for the status that a kernel gave for its list."""
    if status == 1:
        raise CallError(count_out_of_range(operator, count, entries))
    if status == 2:
        raise CallError(index_out_of_range(operator, entries))
