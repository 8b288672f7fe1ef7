"""What a kernel template is: a problem it accepts, and the source text it gives for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from tokenpass.edits import Rejection

Parameters = Mapping[str, int | bool | str]
"""Everything a rendered source depends on; equal parameters give equal text."""

Target = Literal["triton", "cpp"]


@dataclass(frozen=True)
class Argument:
    """One tensor of a call as a template sees it; a dimension that is not known is None."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Problem:
    """One call of an operator: where it runs, and on what.

    Numbers stand for themselves; None is an absent tensor, or a number that is not known.
    """

    operator: str
    device: str
    arguments: tuple[Argument | int | None, ...]

    def tensor(self, index: int) -> Argument | None:
        """The tensor argument at a place; None where it is absent."""
        argument = self.arguments[index]
        return argument if isinstance(argument, Argument) else None


def problem_of(operator: str, arguments: Sequence[Any]) -> Problem:
    """The problem that a call poses, from its tensors, real or fake."""
    described = tuple(map(described_argument, arguments))
    device = next(
        (value.device.type for value in arguments if isinstance(value, torch.Tensor)), "cpu"
    )
    return Problem(operator, device, described)


def described_argument(value: Any) -> Argument | int | None:
    """What a template may know of one argument of a call."""
    if isinstance(value, torch.Tensor):
        sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
        return Argument(value.dtype, sizes)
    return value if isinstance(value, int) else None


class KernelTemplate(ABC):
    """Generates the source of one operator's kernel for one target.

    The source is a Python module that defines `launch`, with the operator's own parameters and
    results. It is made from `parameters` alone: no name and no text of the user's enters it.
    """

    name: ClassVar[str]
    operator: ClassVar[str]
    target: ClassVar[Target]
    device: ClassVar[str]

    @abstractmethod
    def supports(self, problem: Problem) -> Rejection | None:
        """None where the kernel can run `problem`, else the reason; called at every launch."""

    @abstractmethod
    def parameters(self, problem: Problem) -> Parameters:
        """What the source for a supported problem depends on."""

    @abstractmethod
    def render(self, parameters: Parameters) -> str:
        """The module's source text."""

    @abstractmethod
    def ahead_of_time(self, parameters: Parameters) -> AheadOfTime:
        """How to compile the rendered kernel with no device and no arguments at hand."""


@dataclass(frozen=True)
class AheadOfTime:
    """What a compiler needs to know about a kernel that is compiled before its first call.

    `function` names the kernel in the rendered module; `signature` gives each argument's type in
    Triton's words, `"constexpr"` for those in `constants`; `divisible` lists the arguments that
    are multiples of 16 in a typical call (without it another kernel is compiled: unaligned loads).
    """

    function: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    options: Mapping[str, int]
