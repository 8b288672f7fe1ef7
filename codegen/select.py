"""Chooses the kernel for a call by device, dtype and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenpass.codegen.base import KernelTemplate, Problem
from tokenpass.edits import Rejection


@dataclass(frozen=True)
class Choice:
    """The first template that takes the problem, or None and every template's reason."""

    template: KernelTemplate | None
    rejections: tuple[Rejection, ...] = ()


def choose(problem: Problem, templates: Sequence[KernelTemplate]) -> Choice:
    """The kernel for `problem`: `templates` stand in order of preference."""
    rejections: list[Rejection] = []
    for template in templates:
        if template.operator != problem.operator or template.device != problem.device:
            continue
        rejection = template.supports(problem)
        if rejection is None:
            return Choice(template, tuple(rejections))
        rejections.append(rejection)
    if not rejections:
        rejections.append(
            Rejection(
                "no_kernel_template",
                problem.operator,
                f"no template for device {problem.device!r}",
                "the reference runs instead",
            )
        )
    return Choice(None, tuple(rejections))
