"""What an operator is: schema, fake kernel, torch reference and cost, registered together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sympy
import torch

from tokenpass.errors import UserError
from tokenpass.ops.cost_record import OpCost

NAMESPACE = "tokenpass"

Gradient = Literal["none", "refused"]
"""What becomes of inputs that require grad: there is no gradient to give, or they are refused."""


@dataclass(frozen=True)
class Backward:
    """The gradient of an operator, in torch's words for a function with a gradient.

    `keep(ctx, inputs, output)` saves what `gradient(ctx, *grads)` reads; the latter returns one
    gradient or None for each argument. `inputs` are the places of the arguments that have one.
    """

    keep: Callable[..., None]
    gradient: Callable[..., Any]
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One operator of our own, whole: everything that the contract suite checks stands here.

    `check` raises ValueError for arguments that do not fit each other, before any kernel reads
    them; `reference` is the registered implementation on every device; `fake` gives its outputs'
    shapes from fake tensors with symbolic sizes; `cost` takes the call's own arguments (fake or
    real) and returns expressions of their sizes. `example(generator, dtype, **sizes)` makes the
    arguments of one call, `sizes` names its free sizes with the ranges worth testing, `dtypes`
    what it accepts. `backward` is the gradient, where an output is a value; without one, `gradient`
    is "none" where all outputs are choices (indices and the scores that led to them), which have
    none, and "refused" raises for inputs that require grad in grad mode.
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
    backward: Backward | None = None
    gradient: Gradient = "none"

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The callable that graphs contain, `torch.ops.tokenpass.<name>.default`."""
        return getattr(getattr(torch.ops, NAMESPACE), self.name).default

    def register(self, library: torch.library.Library) -> None:
        """Define the operator in `library`, with the reference as its implementation everywhere.

        `define` and `impl` cost 2 us a call where `torch.library.custom_op` costs 10 (17 where an
        input requires grad). Without a gradient the Autograd key falls through and records none.
        """
        library.define(
            self.name + self.schema,
            tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
        )
        library.impl(self.name, self.reference, "CompositeExplicitAutograd")
        qualified = f"{NAMESPACE}::{self.name}"
        torch.library.register_fake(qualified, self.fake, lib=library)
        if self.backward is not None:
            torch.library.register_autograd(
                qualified, self.backward.gradient, setup_context=self.backward.keep, lib=library
            )
            return
        refused = self.gradient == "refused"
        without = self._without_gradient if refused else torch.library.fallthrough_kernel
        library.impl(self.name, without, "Autograd")

    def _without_gradient(self, *arguments: Any) -> Any:
        """The operator where no gradient is asked for; raises UserError where one is."""
        if torch.is_grad_enabled() and any(
            one.requires_grad
            for value in arguments
            for one in (value if isinstance(value, list | tuple) else (value,))
            if isinstance(one, torch.Tensor)
        ):
            raise UserError(
                f"{NAMESPACE}::{self.name} has no gradient, and an input requires one; call it "
                "under torch.no_grad() or torch.inference_mode(), or train without this pass"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*arguments)


def size_expr(size: int | torch.SymInt) -> sympy.Expr:
    """A tensor's size as the sympy expression that stands behind it."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def sum_dtype(x: torch.Tensor) -> torch.dtype:
    """What sums over a tensor's values are held in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
