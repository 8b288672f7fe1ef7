"""What all Triton templates share: a Python module with `launch`, compiled without a device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tokenpass.codegen.base import KernelTemplate, Parameters, Target
from tokenpass.codegen.cache import load


@dataclass(frozen=True)
class AheadOfTime:
    """What a compiler needs to know about a kernel that is compiled before its first call.

    `function` names the kernel in the rendered module; `signature` gives each argument's type in
    Triton's words, `"constexpr"` for those in `constants`; `divisible` lists the arguments that
    are multiples of 16 in a typical call (without it another kernel is compiled: unaligned loads).
    `tensor_cores`: whether the machine code must use them.
    """

    function: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    options: Mapping[str, int]
    tensor_cores: bool = False


class TritonTemplate(KernelTemplate):
    """The source is a Python module; its function `launch` takes the operator's arguments."""

    target: ClassVar[Target] = "triton"
    device: ClassVar[str] = "cuda"

    def launcher(self, parameters: Parameters) -> Callable[..., Any]:
        return load(self, parameters).launch

    @abstractmethod
    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        """How to compile each rendered kernel with no device and no arguments at hand."""
