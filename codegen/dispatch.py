"""Gives operators their kernels: at each call the chosen kernel runs, or the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import KernelTemplate, problem_of
from tokenpass.codegen.cache import load
from tokenpass.codegen.select import choose
from tokenpass.errors import FallbackWarning
from tokenpass.ops import NAMESPACE, OPERATORS, Operator


class Dispatcher:
    """The implementation of one operator on one device type: its best kernel, else the reference.

    A kernel is generated at the first call that needs it, and its compiler imported then. One that
    does not take a call, or fails on it, gives way to the reference with one warning per reason.
    """

    def __init__(self, operator: Operator, templates: Sequence[KernelTemplate]) -> None:
        self._operator = operator
        self._templates = templates
        self._launchers: dict[Hashable, Callable[..., Any]] = {}
        self._warned: set[str] = set()
        self._defaults = tuple(
            argument.default_value for argument in operator.overload._schema.arguments
        )

    def __call__(self, *arguments: Any) -> Any:
        """The operator's results for `arguments`; runs on the device that holds them."""
        # The dispatcher leaves out trailing arguments that have their default value.
        arguments = (*arguments, *self._defaults[len(arguments) :])
        self._operator.check(*arguments)
        problem = problem_of(self._operator.name, arguments)
        choice = choose(problem, self._templates)
        if choice.template is None:
            for rejection in choice.rejections:
                self._warn_once(rejection.code, str(rejection))
            return self._operator.reference(*arguments)
        parameters = choice.template.parameters(problem)
        key = (choice.template.name, *parameters.values())
        try:
            launch = self._launchers.get(key)
            if launch is None:
                launch = self._launchers[key] = load(choice.template, parameters).launch
            with _device_of(arguments):
                return launch(*arguments)
        except torch.OutOfMemoryError:
            raise  # the reference needs more memory, not less
        except Exception as error:  # whatever a compiler or a driver raises
            self._launchers[key] = self._operator.reference
            self._warn_once(
                f"{choice.template.name}:{type(error).__name__}",
                f"kernel {choice.template.name} failed ({type(error).__name__}: {error})",
            )
            return self._operator.reference(*arguments)

    def _warn_once(self, reason: str, message: str) -> None:
        if reason in self._warned:
            return
        self._warned.add(reason)
        warnings.warn(
            f"{NAMESPACE}::{self._operator.name} runs its reference: {message}",
            FallbackWarning,
            stacklevel=3,
        )


def _device_of(arguments: Sequence[Any]) -> AbstractContextManager[Any]:
    """Makes the device of the first CUDA tensor current: Triton launches on the current one."""
    for value in arguments:
        if isinstance(value, torch.Tensor) and value.device.type == "cuda":
            return torch.cuda.device(value.device)
    return nullcontext()


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
