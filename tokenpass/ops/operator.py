"""What an operator is: schema, fake kernel, torch reference and cost, registered together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from tokenpass.ops.cost_record import OpCost

NAMESPACE = "tokenpass"


@dataclass(frozen=True)
class Operator:
    """One operator of our own, whole: everything that the contract suite checks stands here.

    `check` raises ValueError for arguments that do not fit each other, before any kernel reads
    them; `reference` is the registered implementation on every device; `fake` gives its outputs'
    shapes from fake tensors with symbolic sizes; `cost` takes the call's own arguments (fake or
    real) and returns expressions of their sizes. `example(generator, dtype, **sizes)` makes the
    arguments of one call, `sizes` names its free sizes with the ranges worth testing, `dtypes`
    what it accepts.
    """

    name: str
    schema: str
    check: Callable[..., None]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    cost: Callable[..., OpCost]
    example: Callable[..., tuple[Any, ...]]
    sizes: Mapping[str, range]
    dtypes: tuple[torch.dtype, ...]

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The callable that graphs contain, `torch.ops.tokenpass.<name>.default`."""
        return getattr(getattr(torch.ops, NAMESPACE), self.name).default

    def register(self, library: torch.library.Library) -> None:
        """Define the operator in `library`, with the reference as its implementation everywhere.

        `define` and `impl` cost 2 us a call where `torch.library.custom_op` costs 10 (17 where an
        input requires grad). The Autograd key falls through: every operator here returns choices
        (indices and the scores that led to them), which have no gradient, so none is recorded.
        """
        library.define(
            self.name + self.schema,
            tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
        )
        library.impl(self.name, self.reference, "CompositeExplicitAutograd")
        library.impl(self.name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"{NAMESPACE}::{self.name}", self.fake, lib=library)


def size_expr(size: int | torch.SymInt) -> sympy.Expr:
    """A tensor's size as the sympy expression that stands behind it."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
