"""What all C++ templates share: one `extern "C"` function over pointers and sizes, and its ISA."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from tokenpass.codegen.base import Argument, KernelTemplate, Parameters, Problem, Target
from tokenpass.codegen.cache import source_of
from tokenpass.codegen.cpp.build import load
from tokenpass.codegen.cpp.isa import written_for
from tokenpass.edits import Rejection
from tokenpass.errors import InternalError

POINTER, SIZE, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
"""Kinds of a kernel's arguments: `void *`, `int64_t` and `float`."""

STORED = {
    torch.float32: "float",
    torch.bfloat16: "bf16",
    torch.float16: "half",
    torch.float64: "double",
}
"""The C++ type in which a tensor's elements are stored; all are computed with as float."""


class CppTemplate(KernelTemplate):
    """The source defines one function, named like the operator, that returns a status.

    `isas` are the instruction sets whose sources differ, best first; a call gets the best that the
    machine has. `bind` wraps the loaded function in one with the operator's arguments.
    """

    target: ClassVar[Target] = "cpp"
    device: ClassVar[str] = "cpu"
    comment: ClassVar[str] = "//"
    isas: ClassVar[tuple[str, ...]] = ("avx512", "avx2", "scalar")
    any_threads: ClassVar[bool] = False
    """Whether results have the same bits for every number of threads."""

    def parameters(self, problem: Problem) -> Parameters:
        return {"isa": written_for(self.isas), **self.details(problem)}

    @abstractmethod
    def details(self, problem: Problem) -> Parameters:
        """What the source depends on besides the instruction set."""

    @abstractmethod
    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        """The kinds of the function's arguments."""

    @abstractmethod
    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        """A function with the operator's parameters and results that calls `function`."""

    def launcher(self, parameters: Parameters) -> Callable[..., Any]:
        source = source_of(self, parameters)
        library = load(self.operator, source, str(parameters["isa"]))
        function = getattr(library, self.operator)
        function.argtypes, function.restype = self.arguments(parameters), ctypes.c_int
        return self.bind(function, parameters)


def not_float(template: str, given: Argument | None) -> Rejection | None:
    """Why a kernel that sums a tensor in float cannot take it; None if it can."""
    if given is not None and given.dtype == torch.float64:
        return Rejection("kernel_double", template, "values are torch.float64")
    if given is None or given.dtype not in STORED:
        named = None if given is None else given.dtype
        return Rejection("kernel_dtype", template, f"values are {named}", "cast to float32")
    return None


def float_type(template: str, given: Argument | None) -> str:
    """The C++ type of a tensor that `not_float` lets pass."""
    if given is None:
        raise InternalError(f"{template}: a problem without values was not rejected")
    return STORED[given.dtype]
