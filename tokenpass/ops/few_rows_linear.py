"""A linear layer of few rows: the weight is read once, in the order in which it is stored.

With few rows the time is that of reading the weight; what comes before and behind costs nothing
inside the same call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator
from tokenpass.ops.pointwise import flops, parse
from tokenpass.ops.sparse_list import (
    DTYPES,
    EPILOGUES,
    PROLOGUES,
    check_inputs,
    check_matrix,
    choose,
    common_size,
    evaluated,
    example_inputs,
    product,
    text_calls,
)
from tokenpass.shapes import Float

NAME = "few_rows_linear"
CALLS = 5
"""Calls into torch that the reference makes without its texts; a test counts them."""


def few_rows_linear(
    inputs: list[Float[Tensor, "rows width"]],
    prologue: str,
    weight: Float[Tensor, "outputs width"],
    extras: list[Float[Tensor, "rows outputs"]],
    epilogue: str = "y",
) -> Float[Tensor, "rows outputs"]:
    """epilogue(y), y = prologue(inputs) weight^T, in weight's dtype.

    Sums are float32 and in a fixed order, rounded once, behind the epilogue. Any number of rows is
    right; with more than eight the weight is read again for every eight. Gradients are refused.
    """
    call = torch.ops.tokenpass.few_rows_linear.default
    return call(inputs, prologue, weight, extras, epilogue)


def reference(
    inputs: list[Tensor], prologue: str, weight: Tensor, extras: list[Tensor], epilogue: str
) -> Tensor:
    """`few_rows_linear` in plain torch."""
    check(inputs, prologue, weight, extras, epilogue)
    rows, width = common_size(NAME, inputs)
    y = evaluated(prologue, inputs, (rows, width)) @ weight.float().T
    return evaluated(epilogue, extras, (rows, weight.shape[0]), y).to(weight.dtype, copy=True)


def check(
    inputs: list[Tensor], prologue: str, weight: Tensor, extras: list[Tensor], epilogue: str
) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    rows, width = common_size(NAME, inputs)
    check_inputs(NAME, "prologue", inputs, prologue, (rows, width), computed=False)
    check_matrix(NAME, "weight", weight, (None, width))
    check_inputs(NAME, "epilogue", extras, epilogue, (rows, weight.shape[0]), computed=True)


def fake(
    inputs: list[Tensor], prologue: str, weight: Tensor, extras: list[Tensor], epilogue: str
) -> Tensor:
    """Shape and dtype of the output."""
    check(inputs, prologue, weight, extras, epilogue)
    return weight.new_empty((common_size(NAME, inputs)[0], weight.shape[0]))


def cost(
    inputs: list[Tensor], prologue: str, weight: Tensor, extras: list[Tensor], epilogue: str
) -> OpCost:
    """A product and its texts."""
    (rows, width), outputs = common_size(NAME, inputs), weight.shape[0]
    texts = product(rows, width) * flops(parse(prologue))
    texts += product(rows, outputs) * flops(parse(epilogue))
    return OpCost(
        work="few_rows",
        flops=2 * product(rows, outputs, width) + texts,
        dims=(product(), product(rows), product(outputs), product(width)),
        calls=CALLS + text_calls(prologue) + text_calls(epilogue),
    )


def example(
    generator: torch.Generator, dtype: torch.dtype, *, rows: int, width: int, outputs: int
) -> tuple[list[Tensor], str, Tensor, list[Tensor], str]:
    """Arguments of one call; inputs that repeat, texts before and behind."""
    before, behind, *repeated = choose(generator, len(PROLOGUES), len(EPILOGUES), 4, 4, 4, 4)
    # a0 keeps the rows and columns: the others may repeat
    inputs = example_inputs(generator, dtype, (max(1, repeated[0]), repeated[1]), (rows, width))
    weight = torch.randn(outputs, width, generator=generator).to(dtype)
    extras = example_inputs(generator, dtype, (repeated[2], repeated[3]), (rows, outputs))
    return inputs, PROLOGUES[before], weight, extras, EPILOGUES[behind]


OPERATOR = Operator(
    name=NAME,
    schema=(
        "(Tensor[] inputs, str prologue, Tensor weight, Tensor[] extras, str epilogue) -> Tensor"
    ),
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"rows": range(1, 10), "width": range(70), "outputs": range(1, 70)},
    dtypes=DTYPES,
    gradient="refused",
)
