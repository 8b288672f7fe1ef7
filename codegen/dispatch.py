"""Gives operators their kernels: at each call the chosen kernel runs, or the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import KernelTemplate, device_type, problem_of
from tokenpass.codegen.select import choose
from tokenpass.errors import CallError, FallbackWarning
from tokenpass.ops import NAMESPACE, OPERATORS, Operator

Run = Callable[..., Any]

MEANT = frozenset({"kernel_double"})
"""Reasons for which the reference is what should run: no warning."""

MOST_KINDS = 4096
"""Kinds of calls that one operator remembers; one more, and it starts anew."""


class Dispatcher:
    """The implementation of one operator on one device type: its best kernel, else the reference.

    Calls are told apart by dtypes, shapes, numbers and text. The first of a kind is checked and
    given its kernel (generated, compiled and loaded where it must be); later ones find it at once.
    A kernel that does not take a call, or fails on it, gives way to the reference with one warning
    per reason.
    """

    def __init__(self, operator: Operator, templates: Sequence[KernelTemplate]) -> None:
        self._operator = operator
        self._templates = templates
        self._kinds: dict[Hashable, tuple[Run, Hashable]] = {}
        self._sources: dict[Hashable, Run] = {}
        self._warned: set[str] = set()
        self._defaults = tuple(
            argument.default_value for argument in operator.overload._schema.arguments
        )

    def __call__(self, *arguments: Any) -> Any:
        """The operator's results for `arguments`; runs on the device that holds them."""
        if len(arguments) < len(self._defaults):
            # torch's dispatcher leaves out trailing arguments that have their default value.
            arguments = (*arguments, *self._defaults[len(arguments) :])
        kind = kind_of(arguments)
        launch, source = self._kinds.get(kind) or self._prepare(kind, arguments)
        if source is None:
            return launch(*arguments)
        try:
            return launch(*arguments)
        except Exception as error:  # whatever a compiler or a driver raises
            if isinstance(error, CallError) or is_out_of_memory(error):
                raise  # the reference would raise too: the call is wrong, or needs more memory
            self._give_up(source, error)
            return self._operator.reference(*arguments)

    def _prepare(self, kind: Hashable, arguments: Sequence[Any]) -> tuple[Run, Hashable]:
        """What runs calls of this kind, and from which source; None: it is the reference.

        Raises ValueError where the arguments do not fit each other.
        """
        self._operator.check(*arguments)
        problem = problem_of(self._operator.name, arguments)
        choice = choose(problem, self._templates)
        prepared: tuple[Run, Hashable] = (self._operator.reference, None)
        if choice.template is None:
            for rejection in choice.rejections:
                if rejection.code not in MEANT:
                    self._warn_once(rejection.code, str(rejection))
        else:
            parameters = choice.template.parameters(problem)
            source = (choice.template.name, *parameters.values())
            if source not in self._sources:
                try:
                    launch = choice.template.launcher(parameters)
                    self._sources[source] = _on_device(launch, device_type(arguments))
                except Exception as error:
                    self._give_up(source, error)
            if self._sources[source] is not self._operator.reference:
                prepared = (self._sources[source], source)
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        self._kinds[kind] = prepared
        return prepared

    def _give_up(self, source: Hashable, error: Exception) -> None:
        """From now on the reference stands in for the kernel that `source` gave."""
        name = source[0] if isinstance(source, tuple) else source
        self._sources[source] = self._operator.reference
        self._kinds.clear()
        self._warn_once(
            f"{name}:{type(error).__name__}",
            f"kernel {name} failed ({type(error).__name__}: {error})",
        )

    def _warn_once(self, reason: str, message: str) -> None:
        if reason in self._warned:
            return
        self._warned.add(reason)
        warnings.warn(
            f"{NAMESPACE}::{self._operator.name} runs its reference: {message}",
            FallbackWarning,
            stacklevel=4,
        )


def kind_of(arguments: Sequence[Any]) -> Hashable:
    """What tells one kind of call from another: all that a check or a template may look at."""
    return tuple(
        [
            (value.dtype, value.device, value.shape)
            if isinstance(value, torch.Tensor)
            else tuple([(one.dtype, one.device, one.shape) for one in value])
            if isinstance(value, list | tuple)
            else value
            for value in arguments
        ]
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU torch says so in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _on_device(launch: Run, device: str) -> Run:
    """`launch`, with the device of the first CUDA tensor current: Triton launches on that one."""
    if device != "cuda":
        return launch

    def launch_there(*arguments: Any) -> Any:
        first = next(
            one
            for value in arguments
            for one in (value if isinstance(value, list | tuple) else (value,))
            if isinstance(one, torch.Tensor) and one.is_cuda
        )
        with torch.cuda.device(first.device):
            return launch(*arguments)

    return launch_there


def install_kernels(
    templates: Sequence[KernelTemplate] = TEMPLATES, operators: Sequence[Operator] = OPERATORS
) -> torch.library.Library:
    """Register every operator that `templates` have a kernel for on those kernels' devices.

    The registrations last as long as the returned library: whoever calls this keeps it. Nothing is
    generated and no compiler imported until a tensor of such a device arrives; graphs call the
    operator by its name before and after, so that compiled graphs in caches stay valid.
    """
    library = torch.library.Library(NAMESPACE, "IMPL")
    for operator in operators:
        own = tuple(template for template in templates if template.operator == operator.name)
        for device in sorted({template.device for template in own}):
            library.impl(operator.name, Dispatcher(operator, own), device.upper())
    return library
