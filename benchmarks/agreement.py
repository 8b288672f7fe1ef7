"""How far a variant's output is from dense, and whether an exact one is as good as dense."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EXACT_FACTOR = 2.0
"""An exact variant may be this many times as far from float64 as dense is, plus one ulp."""


@dataclass(frozen=True)
class Agreement:
    """Distance of a variant's output to dense: relative L2, and the mean cosine of its rows."""

    relative_l2: float
    cosine: float


@dataclass(frozen=True)
class Exactness:
    """Root mean square distances to float64, of dense and of the variant, and the verdict."""

    dense_rms: float
    variant_rms: float
    bound: float
    holds: bool


def agreement(dense: Tensor, variant: Tensor) -> Agreement:
    """Compare two outputs [..., width] of the same shape."""
    rows, others = (output.double().flatten(0, -2) for output in (dense, variant))
    distance = (rows - others).norm() / rows.norm()
    cosine = torch.nn.functional.cosine_similarity(rows, others, dim=-1).mean()
    return Agreement(float(distance), float(cosine))


def exactness(dense: Tensor, variant: Tensor, reference: Tensor) -> Exactness:
    """Whether `variant` is at most twice as far from the float64 `reference` as dense, plus 1 ulp.

    The ulp is that of the output's data type at the reference's root mean square.
    """
    dense_rms, variant_rms = (_rms(output.double() - reference) for output in (dense, variant))
    bound = EXACT_FACTOR * dense_rms + torch.finfo(dense.dtype).eps * _rms(reference)
    return Exactness(dense_rms, variant_rms, bound, variant_rms <= bound)


def float64_output(
    model: nn.Module, inputs: Mapping[str, Any], output: Callable[[Any], Tensor]
) -> Tensor:
    """The output of a float64 copy of the model, run eagerly."""
    precise = copy.deepcopy(model).double()
    converted = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    with torch.no_grad():
        return output(precise(**converted))


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
