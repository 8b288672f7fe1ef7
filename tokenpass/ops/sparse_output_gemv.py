"""A linear layer of which few outputs are needed: only their rows of the weight are read."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator
from tokenpass.ops.pointwise import flops, parse
from tokenpass.ops.sparse_input_gemv import example_list
from tokenpass.ops.sparse_list import (
    DTYPES,
    EPILOGUES,
    check_inputs,
    check_list,
    check_matrix,
    choose,
    evaluated,
    example_inputs,
    listed,
    product,
    share_of,
    text_calls,
)
from tokenpass.shapes import Float, Int

NAME = "sparse_output_gemv"
CALLS = 14
"""Calls into torch that the reference makes without its text and inputs; a test counts them."""


def sparse_output_gemv(
    x: Float[Tensor, "rows width"],
    index: Int[Tensor, " entries"],
    count: Int[Tensor, " 1"],
    weight: Float[Tensor, "entries width"],
    inputs: list[Float[Tensor, "rows entries"]],
    epilogue: str = "y",
    density: float = 1.0,
) -> Float[Tensor, "rows entries"]:
    """h[:, j] = epilogue(x . weight[index[j]]) for j < count, float32, in the list's order.

    Inputs with a column for each entry are read at index[j]. What lies behind the list is
    unspecified. Sums are float32 and in a fixed order. `density`, the share of entries that is
    expected to be listed, changes no result: the cost model reads it. Gradients are refused. Raises
    CallError where the list is out of range.
    """
    call = torch.ops.tokenpass.sparse_output_gemv.default
    return call(x, index, count, weight, inputs, epilogue, density)


def reference(
    x: Tensor,
    index: Tensor,
    count: Tensor,
    weight: Tensor,
    inputs: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> Tensor:
    """`sparse_output_gemv` in plain torch; zeros lie behind the list."""
    check(x, index, count, weight, inputs, epilogue)
    places = listed(NAME, index, count)
    rows, active = x.shape[0], places.shape[0]
    y = x.float() @ weight.index_select(0, places).float().T
    there = [one if one.shape[1] == 1 else one.index_select(1, places) for one in inputs]
    h = torch.zeros((rows, weight.shape[0]), dtype=torch.float32, device=x.device)
    h[:, :active] = evaluated(epilogue, there, (rows, active), y)
    return h


def check(
    x: Tensor,
    index: Tensor,
    count: Tensor,
    weight: Tensor,
    inputs: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    check_matrix(NAME, "weight", weight, (None, None))
    entries, width = weight.shape
    check_list(NAME, index, count, entries)
    check_matrix(NAME, "x", x, (None, width))
    check_inputs(NAME, "epilogue", inputs, epilogue, (x.shape[0], entries), computed=True)


def fake(
    x: Tensor,
    index: Tensor,
    count: Tensor,
    weight: Tensor,
    inputs: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> Tensor:
    """Shape and dtype of the output."""
    check(x, index, count, weight, inputs, epilogue)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.float32)


def cost(
    x: Tensor,
    index: Tensor,
    count: Tensor,
    weight: Tensor,
    inputs: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> OpCost:
    """A product with the expected share of entries: how many are is known on the device alone."""
    rows, (entries, width) = x.shape[0], weight.shape
    share = share_of(density)
    elements = product(rows, entries)
    return OpCost(
        work="listed_rows",
        flops=share * (2 * product(rows, entries, width) + elements * flops(parse(epilogue))),
        dims=(product(), product(rows), share * product(entries), product(width)),
        calls=CALLS + len(inputs) + text_calls(epilogue),
        unread=(1 - share) * product(entries, width) * weight.element_size(),
    )


def example(
    generator: torch.Generator, dtype: torch.dtype, *, rows: int, entries: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], str, float]:
    """Arguments of one call: any count that is possible, nonsense behind it."""
    text, *repeated = choose(generator, len(EPILOGUES), 4, 4)
    index, count = example_list(generator, entries)
    x = torch.randn(rows, width, generator=generator).to(dtype)
    weight = torch.randn(entries, width, generator=generator).to(dtype)
    inputs = example_inputs(generator, dtype, (repeated[0], repeated[1]), (rows, entries))
    return x, index, count, weight, inputs, EPILOGUES[text], 1.0


OPERATOR = Operator(
    name=NAME,
    schema=(
        "(Tensor x, Tensor index, Tensor count, Tensor weight, Tensor[] inputs, str epilogue,"
        " float density=1.0) -> Tensor"
    ),
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={"rows": range(1, 10), "entries": range(70), "width": range(1, 70)},
    dtypes=DTYPES,
    gradient="refused",
)
