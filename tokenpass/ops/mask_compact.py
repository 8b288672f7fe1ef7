"""Which entries of a vector are active: the list that the sparse products walk.

Thresholds by row or channel make it the rule of TEAL (Liu et al. 2025), CATS (Lee et al. 2024),
CHESS (He et al. 2024) and WINA (Chen et al. 2025); without one it is the exact zeros of ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator
from tokenpass.ops.pointwise import flops, parse
from tokenpass.ops.sparse_list import (
    DTYPES,
    PROLOGUES,
    check_inputs,
    choose,
    common_size,
    evaluated,
    example_inputs,
    product,
    text_calls,
)
from tokenpass.shapes import Float, Int

NAME = "mask_compact"
CALLS = 12
"""Calls into torch that the reference makes without its text, with a threshold; a test counts."""


def mask_compact(
    inputs: list[Float[Tensor, "rows entries"]],
    prologue: str,
    threshold: Float[Tensor, "#entries"] | None = None,
) -> tuple[Int[Tensor, " entries"], Float[Tensor, "rows entries"], Int[Tensor, " 1"]]:
    """(index, kept, count) of v = prologue(inputs), float32 [rows, entries].

    Entry k is listed where in any row |v_k| > threshold_k (v_k != 0 without a threshold), or v_k is
    NaN. `index` int32 holds the listed entries, ascending, in its first `count` places; `kept`
    float32 their values in that order, 0 in a row where the entry is below its threshold. What lies
    behind is unspecified. Gradients are refused.
    """
    return torch.ops.tokenpass.mask_compact.default(inputs, prologue, threshold)


def reference(
    inputs: list[Tensor], prologue: str, threshold: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`mask_compact` in plain torch; zeros and the other entries lie behind the list."""
    check(inputs, prologue, threshold)
    values = evaluated(prologue, inputs, common_size(NAME, inputs))
    # Not "greater": NaN is listed.
    kept = values != 0 if threshold is None else ~(values.abs() <= threshold)
    active = kept.any(0)
    order = torch.argsort(active, descending=True, stable=True)
    in_order = torch.where(kept, values, 0.0).index_select(1, order)
    return order.to(torch.int32), in_order, active.sum(dtype=torch.int32).reshape(1)


def check(inputs: list[Tensor], prologue: str, threshold: Tensor | None) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    size = common_size(NAME, inputs)
    check_inputs(NAME, "prologue", inputs, prologue, size, computed=False)
    check_threshold(NAME, threshold, size[1])


def check_threshold(operator: str, threshold: Tensor | None, entries: int | torch.SymInt) -> None:
    """Raises ValueError unless `threshold` is float32, one or one for each entry (or None)."""
    if threshold is None:
        return
    if (
        threshold.dtype != torch.float32
        or threshold.dim() != 1
        or threshold.shape[0] not in (1, entries)
    ):
        raise ValueError(
            f"tokenpass::{operator}: threshold must be float32 [{entries} or 1], "
            f"got {threshold.dtype} {tuple(threshold.shape)}"
        )


def fake(
    inputs: list[Tensor], prologue: str, threshold: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of the outputs."""
    check(inputs, prologue, threshold)
    rows, entries = common_size(NAME, inputs)
    like = inputs[0]
    return (
        like.new_empty((entries,), dtype=torch.int32),
        like.new_empty((rows, entries), dtype=torch.float32),
        like.new_empty((1,), dtype=torch.int32),
    )


def cost(inputs: list[Tensor], prologue: str, threshold: Tensor | None) -> OpCost:
    """The text and two comparisons for each element."""
    elements = product(*common_size(NAME, inputs))
    return OpCost(
        work="pointwise",
        flops=elements * (flops(parse(prologue)) + 2),
        dims=(elements,),
        calls=CALLS - 2 * (threshold is None) + text_calls(prologue),
    )


def example(
    generator: torch.Generator, dtype: torch.dtype, *, rows: int, entries: int
) -> tuple[list[Tensor], str, Tensor | None]:
    """Arguments of one call: some values zero in all rows, a threshold for all, each, or none."""
    text, limit, *repeated = choose(generator, len(PROLOGUES), 3, 4, 4)
    # a0 keeps the rows and entries: the others may repeat
    inputs = example_inputs(generator, dtype, (max(1, repeated[0]), repeated[1]), (rows, entries))
    inputs[0] *= torch.rand(entries, generator=generator) < 0.7
    threshold = torch.rand(1 if limit == 1 else entries, generator=generator)
    return inputs, PROLOGUES[text], threshold if limit else None


OPERATOR = Operator(
    name=NAME,
    schema=(
        "(Tensor[] inputs, str prologue, Tensor? threshold)"
        " -> (Tensor index, Tensor kept, Tensor count)"
    ),
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"rows": range(1, 10), "entries": range(70)},
    dtypes=DTYPES,
    gradient="refused",
)
