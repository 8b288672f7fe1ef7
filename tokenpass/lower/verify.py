"""Verification at run time: the dense graph runs beside the compiled one, and outputs are compared.

Exact plans must give what dense gives, up to the rounding of reordered sums; lossy ones the same
shapes and dtypes, finite values where dense has them, and what the slow reference of their plan
gives. Their error is measured and logged.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from tokenpass.errors import FallbackWarning, InternalError
from tokenpass.tracing import calls

log = logging.getLogger("tokenpass.verify")

# Relative L2 distance that reordered sums may make: some hundred units in the last place.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

NEAR_TIES = 0.25
"""Share of a plan's own loss by which it may differ from its reference.

Where two pairs of tokens are nearly as similar, rounding decides which one merges, and a rule that
needs all tokens inside a block takes means at another place than the reference. A wrong axis, mask
or size is as large as the loss itself.
"""

COMPARED = (torch.float32, torch.float64)
"""In narrower types near ties are the rule: a plan's outputs are compared with dense alone."""

Run = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Promise:
    """What is known of a compiled graph before it runs.

    `name`: its fingerprint; `exact`: no lossy edit; `error`: the estimated relative L2 distance of
    the main output, the one at index `main` (None: there is none). `may_shrink`: indices of outputs
    that the user lets become shorter.
    """

    name: str
    exact: bool
    error: float = 0.0
    main: int | None = None
    may_shrink: frozenset[int] = frozenset()


def verified(
    compiled: Callable[..., Any],
    dense: GraphModule,
    promise: Promise,
    *,
    how: Literal["first", "always"],
    on_failure: Literal["fallback", "raise"],
    reference: Run | None = None,
    blame: Callable[[Sequence[Any]], str] | None = None,
) -> Callable[..., Any]:
    """`compiled`, compared with the dense graph on its first call or on each.

    `reference` gives a lossy plan's outputs at full length; it too gets inputs of its own. `blame`
    says more about a defect, from the inputs that showed it.

    A defect raises `InternalError`; with `on_failure: fallback` it warns once instead, and this
    call and all later ones give dense's outputs (run eagerly).

    Dynamo calls what a backend returns with one argument for each input. Attributes of `compiled`
    are not copied: Inductor's callable carries a `_boxed_call` that it inherits from an inner
    function and does not honour, and a `_torchdynamo_orig_callable` past which Dynamo would look.
    """
    state = {"checked": False, "broken": False}
    random = is_random(dense)

    def call(*inputs: Any) -> Any:
        if state["broken"]:
            return run_dense(dense, inputs)
        if state["checked"] and how == "first":
            return compiled(*inputs)
        with torch.no_grad():
            expected = run_dense(dense, [separate(value) for value in inputs])
        kept = [separate(value) for value in inputs]
        found = compiled(*inputs)
        with torch.no_grad():  # behind the call: it is told what the call was given
            planned = None if promise.exact else reference_outputs(reference, kept)
        state["checked"] = True
        problem = compare(tree_leaves(found), tree_leaves(expected), promise, random, planned)
        if problem is None:
            return found
        more = "" if blame is None else blame(kept)
        message = f"verify: graph {promise.name}: {problem}{more}"
        if on_failure == "raise":
            raise InternalError(message)
        warnings.warn(
            f"tokenpass {message}; it runs dense, eagerly, from now on", FallbackWarning, 2
        )
        state["broken"] = True
        return run_dense(dense, kept)

    return call


def run_dense(dense: GraphModule, inputs: Sequence[Any]) -> Any:
    """The captured graph, operator by operator."""
    return Interpreter(dense).run(*inputs)


def reference_outputs(reference: Run | None, inputs: Sequence[Any]) -> list[Any] | None:
    """What the plan's reference gives; None (and a line in the log) where it cannot run."""
    if reference is None:
        return None
    try:
        return tree_leaves(reference([separate(value) for value in inputs]))
    except Exception as cause:  # a slow interpreter must not stop a call that is right
        log.warning("the plan's reference could not run: %s: %s", type(cause).__name__, cause)
        return None


def separate(value: Any) -> Any:
    """An input that may be written to unseen; what needs gradients is not written to in place."""
    if isinstance(value, torch.Tensor) and not value.requires_grad:
        return value.clone()
    return value


def is_random(module: GraphModule) -> bool:
    """Whether a graph draws random numbers: then values cannot be compared, only shapes."""
    return any(draws(node) for node in calls(module.graph))


def draws(node: Node) -> bool:
    """Whether a call draws random numbers: attention and dropout do so in training alone."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    for at, argument in enumerate(node.target._schema.arguments):
        if argument.name in ("dropout_p", "train", "training"):
            given = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name)
            return bool(given)
    return True


def compare(
    found: Sequence[Any],
    expected: Sequence[Any],
    promise: Promise,
    random: bool,
    planned: Sequence[Any] | None = None,
) -> str | None:
    """What is wrong with a graph's outputs; None if nothing is."""
    if len(found) != len(expected):
        return f"{len(found)} outputs instead of {len(expected)}"
    for at, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(other, torch.Tensor) or at in promise.may_shrink:
            continue
        if shape(one) != shape(other):
            return f"output {at} is {shape(one)} instead of {shape(other)}"
        if not random and not finite(one) and finite(other):
            return f"output {at} has values that are not finite where dense is finite"
    if random:
        log.info("graph %s draws random numbers: shapes alone were compared", promise.name)
        return None
    if not promise.exact:
        tell_error(found, expected, promise)
        return None if planned is None else beside_reference(found, expected, promise, planned)
    for at, (one, other) in enumerate(zip(found, expected, strict=True)):
        if isinstance(other, torch.Tensor) and at not in promise.may_shrink:
            error, allowed = distance(one, other), TOLERANCE.get(other.dtype, 0.0)
            if error > allowed:
                return (
                    f"output {at} is {error:.3g} from dense (relative L2) where only exact edits "
                    f"were made, which allows {allowed:.1g}"
                )
    return None


def beside_reference(
    found: Sequence[Any], expected: Sequence[Any], promise: Promise, planned: Sequence[Any]
) -> str | None:
    """What is wrong with a lossy plan's outputs beside those of its reference; None if nothing."""
    for at, (one, other, plan) in enumerate(zip(found, expected, planned, strict=True)):
        if not isinstance(other, torch.Tensor) or at in promise.may_shrink:
            continue
        if other.dtype not in COMPARED:
            continue
        error, loss = distance(one, plan), distance(plan, other)
        allowed = TOLERANCE[other.dtype] + NEAR_TIES * loss
        if error > allowed:
            return (
                f"output {at} is {error:.3g} from the plan's reference (relative L2), which itself "
                f"is {loss:.3g} from dense and allows {allowed:.2g}"
            )
    return None


def tell_error(found: Sequence[Any], expected: Sequence[Any], promise: Promise) -> None:
    """The measured error beside the estimated one."""
    if promise.main is None:
        return
    error = distance(found[promise.main], expected[promise.main])
    log.info("graph %s: error %.3g, estimated %.3g", promise.name, error, promise.error)


def shape(value: Any) -> str:
    """Shape and dtype, to compare and to show."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{value.dtype} {list(value.shape)}"


def finite(value: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(torch.isfinite(value).all())


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|, with equal infinities (masks) at no distance."""
    if found.numel() == 0:
        return 0.0
    same = found == expected
    one, other = found.detach().double(), expected.detach().double()
    apart = torch.where(same, 0.0, one - other)
    error = float(apart.norm())
    if math.isnan(error) and not finite(expected):  # NaN where dense has NaN is no difference
        error = float(torch.where(torch.isfinite(other), apart, 0.0).norm())
    size = float(torch.where(torch.isfinite(other), other, 0.0).norm())
    return error / size if size else (0.0 if error == 0 else math.inf)
