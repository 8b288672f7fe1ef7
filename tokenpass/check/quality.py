"""How far outputs are from dense's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tokenpass.lower.verify import distance


def main_tensor(output: Any) -> Tensor | None:
    """The first floating tensor of what a model returned, by name or by place."""
    leaves = tree_leaves(dict(output) if isinstance(output, dict) else output)
    return next((x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()), None)


def relative_error(found: Tensor, dense: Tensor) -> float:
    """|found - dense| / |dense|, relative L2."""
    return distance(found, dense)


def cosine(found: Tensor, dense: Tensor) -> float:
    """The least cosine between rows of the last dimension."""
    one, other = found.double(), dense.double()
    if not one.dim():
        one, other = one.reshape(1), other.reshape(1)
    return float(torch.nn.functional.cosine_similarity(one, other, dim=-1).min())


def divergence(found: Tensor, dense: Tensor) -> float:
    """KL(dense || found) of logits, in nats: the mean over rows of the last dimension."""
    one, other = (x.double().log_softmax(-1) for x in (found, dense))
    finite = torch.where(other.isfinite() & one.isfinite(), other.exp() * (other - one), 0.0)
    return float(finite.sum(-1).mean())


MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "error": relative_error,
    "cosine": cosine,
    "kl": divergence,
}
"""By the name of the number; gates bound them."""


def wrong(found: Tensor | None, dense: Tensor | None) -> str | None:
    """Why two outputs cannot be compared, or must not differ so; None if they can."""
    if dense is None or found is None:
        return None if dense is found else "one of the outputs has no floating tensor"
    if found.shape != dense.shape:
        return f"the output is {list(found.shape)}, dense's {list(dense.shape)}"
    bad = ~found.isfinite() & dense.isfinite()
    if bool(bad.any()):
        return f"{int(bad.sum())} values are not finite where dense's are"
    return None
