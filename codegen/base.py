"""What a kernel template is: a problem it accepts, the source it gives, and how to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
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


Described = Argument | tuple[Argument, ...] | int | float | str | None


@dataclass(frozen=True)
class Problem:
    """One call of an operator: where it runs, and on what.

    Numbers and text stand for themselves, a tuple for a list of tensors; None is an absent tensor,
    or a number that is not known.
    """

    operator: str
    device: str
    arguments: tuple[Described, ...]

    def tensor(self, index: int) -> Argument | None:
        """The tensor argument at a place; None where it is absent."""
        argument = self.arguments[index]
        return argument if isinstance(argument, Argument) else None

    def tensors(self, index: int) -> tuple[Argument, ...]:
        """The list of tensors at a place; empty where there is none."""
        argument = self.arguments[index]
        return argument if isinstance(argument, tuple) else ()

    def text(self, index: int) -> str:
        """The text at a place; empty where there is none."""
        argument = self.arguments[index]
        return argument if isinstance(argument, str) else ""


def problem_of(operator: str, arguments: Sequence[Any]) -> Problem:
    """The problem that a call poses, from its tensors, real or fake."""
    described = tuple(map(described_argument, arguments))
    return Problem(operator, device_type(arguments), described)


def device_type(arguments: Sequence[Any]) -> str:
    """The type of the first tensor's device, one in a list included; "cpu" without tensors."""
    for value in arguments:
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, torch.Tensor):
                return one.device.type
    return "cpu"


def described_argument(value: Any) -> Described:
    """What a template may know of one argument of a call."""
    if isinstance(value, torch.Tensor):
        sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
        return Argument(value.dtype, sizes)
    if isinstance(value, list | tuple):
        tensors = (described_argument(one) for one in value)
        return tuple(one for one in tensors if isinstance(one, Argument))
    return value if isinstance(value, int | float | str) else None


class KernelTemplate(ABC):
    """Generates the source of one operator's kernel for one target, and makes it callable.

    The source is made from `parameters` alone: no name and no text of the user's enters it.
    """

    name: ClassVar[str]
    operator: ClassVar[str]
    target: ClassVar[Target]
    device: ClassVar[str]
    comment: ClassVar[str] = "#"
    """What opens a comment in the target's language."""

    @abstractmethod
    def supports(self, problem: Problem) -> Rejection | None:
        """None where the kernel can run `problem`, else the reason; asked once per kind of call."""

    @abstractmethod
    def parameters(self, problem: Problem) -> Parameters:
        """What the source for a supported problem depends on."""

    @abstractmethod
    def render(self, parameters: Parameters) -> str:
        """The source text."""

    @abstractmethod
    def launcher(self, parameters: Parameters) -> Callable[..., Any]:
        """The kernel with the operator's parameters and results; raises what a compiler does."""
