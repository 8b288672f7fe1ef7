"""A linear layer of a mostly zero value, list and product in one call: W is read where it is not.

`mask_compact` and `sparse_input_gemv` without what lies between: one launch, no list in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops import mask_compact, sparse_input_gemv
from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator
from tokenpass.ops.pointwise import flops, parse
from tokenpass.ops.sparse_list import (
    DTYPES,
    EPILOGUES,
    check_inputs,
    check_matrix,
    choose,
    common_size,
    example_inputs,
    product,
    share_of,
    text_calls,
)
from tokenpass.shapes import Float

NAME = "sparse_linear"
CALLS = mask_compact.CALLS + sparse_input_gemv.CALLS
"""Calls into torch that the reference makes without its texts, with a threshold."""


def sparse_linear(
    inputs: list[Float[Tensor, "rows entries"]],
    prologue: str,
    threshold: Float[Tensor, "#entries"] | None,
    weight: Float[Tensor, "outputs entries"],
    extras: list[Float[Tensor, "rows outputs"]],
    epilogue: str = "y",
    density: float = 1.0,
) -> Float[Tensor, "rows outputs"]:
    """epilogue(y), y = sum over listed k of v[:, k] weight[:, k], v = prologue(inputs).

    The list is that of `mask_compact`, the product that of `sparse_input_gemv`: weights of entries
    that are not listed are never read. In weight's dtype. Gradients are refused.
    """
    call = torch.ops.tokenpass.sparse_linear.default
    return call(inputs, prologue, threshold, weight, extras, epilogue, density)


def reference(
    inputs: list[Tensor],
    prologue: str,
    threshold: Tensor | None,
    weight: Tensor,
    extras: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> Tensor:
    """`sparse_linear` by the references of the two operators that it joins."""
    check(inputs, prologue, threshold, weight, extras, epilogue)
    index, kept, count = mask_compact.reference(inputs, prologue, threshold)
    return sparse_input_gemv.reference(index, kept, count, weight, extras, epilogue)


def check(
    inputs: list[Tensor],
    prologue: str,
    threshold: Tensor | None,
    weight: Tensor,
    extras: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    rows, entries = common_size(NAME, inputs)
    check_inputs(NAME, "prologue", inputs, prologue, (rows, entries), computed=False)
    mask_compact.check_threshold(NAME, threshold, entries)
    check_matrix(NAME, "weight", weight, (None, entries))
    check_inputs(NAME, "epilogue", extras, epilogue, (rows, weight.shape[0]), computed=True)


def fake(
    inputs: list[Tensor],
    prologue: str,
    threshold: Tensor | None,
    weight: Tensor,
    extras: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> Tensor:
    """Shape and dtype of the output."""
    check(inputs, prologue, threshold, weight, extras, epilogue)
    return weight.new_empty((common_size(NAME, inputs)[0], weight.shape[0]))


def cost(
    inputs: list[Tensor],
    prologue: str,
    threshold: Tensor | None,
    weight: Tensor,
    extras: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> OpCost:
    """A product with the expected share of entries; the device alone knows how many it is."""
    (rows, entries), outputs = common_size(NAME, inputs), weight.shape[0]
    share = share_of(density)
    texts = product(rows, entries) * (flops(parse(prologue)) + 2)
    texts += product(rows, outputs) * flops(parse(epilogue))
    return OpCost(
        work="listed_rows",
        flops=share * 2 * product(rows, outputs, entries) + texts,
        dims=(product(), product(rows), product(outputs), share * product(entries)),
        calls=CALLS - 2 * (threshold is None) + text_calls(prologue) + text_calls(epilogue),
        unread=(1 - share) * product(outputs, entries) * weight.element_size(),
    )


def example(
    generator: torch.Generator, dtype: torch.dtype, *, rows: int, entries: int, outputs: int
) -> tuple[list[Tensor], str, Tensor | None, Tensor, list[Tensor], str, float]:
    """Arguments of one call, with the texts and thresholds of the operators that it joins."""
    text, *repeated = choose(generator, len(EPILOGUES), 4, 4)
    inputs, prologue, threshold = mask_compact.example(generator, dtype, rows=rows, entries=entries)
    weight = torch.randn(outputs, entries, generator=generator).to(dtype)
    extras = example_inputs(generator, dtype, (repeated[0], repeated[1]), (rows, outputs))
    return inputs, prologue, threshold, weight, extras, EPILOGUES[text], 1.0


OPERATOR = Operator(
    name=NAME,
    schema=(
        "(Tensor[] inputs, str prologue, Tensor? threshold, Tensor weight, Tensor[] extras,"
        " str epilogue, float density=1.0) -> Tensor"
    ),
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"rows": range(1, 10), "entries": range(70), "outputs": range(1, 70)},
    dtypes=DTYPES,
    gradient="refused",
)
