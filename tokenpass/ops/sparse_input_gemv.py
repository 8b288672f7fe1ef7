"""A linear layer whose input is mostly zero: only the weights of active entries are read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenpass.ops.cost_record import OpCost
from tokenpass.ops.operator import Operator
from tokenpass.ops.pointwise import flops, parse
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

NAME = "sparse_input_gemv"
CALLS = 13
"""Calls into torch that the reference makes without its text; a test counts them."""


def sparse_input_gemv(
    index: Int[Tensor, " entries"],
    kept: Float[Tensor, "rows entries"],
    count: Int[Tensor, " 1"],
    weight: Float[Tensor, "*blocks outputs size"],
    inputs: list[Float[Tensor, "rows outputs"]],
    epilogue: str = "y",
    density: float = 1.0,
) -> Float[Tensor, "rows outputs"]:
    """epilogue(y), y = sum over j < count of kept[:, j] weight[:, index[j]], in weight's dtype.

    A weight [blocks, outputs, size] stands for its blocks side by side: entries = blocks size.
    Sums are float32 and in a fixed order. Entries that are not listed are never read, so infinities
    and NaN in their weights do not matter; those in listed ones meet kept values that are 0 as in
    any product. `density`, the share of entries that is expected to be listed, changes no
    result: the cost model reads it. Gradients are refused. Raises CallError where the list is out
    of range.
    """
    call = torch.ops.tokenpass.sparse_input_gemv.default
    return call(index, kept, count, weight, inputs, epilogue, density)


def reference(
    index: Tensor,
    kept: Tensor,
    count: Tensor,
    weight: Tensor,
    inputs: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> Tensor:
    """`sparse_input_gemv` in plain torch."""
    check(index, kept, count, weight, inputs, epilogue)
    places = listed(NAME, index, count)
    matrix = weight if weight.dim() == 2 else weight.transpose(0, 1).flatten(1)
    y = kept[:, : places.shape[0]] @ matrix.index_select(1, places).float().T
    return evaluated(epilogue, inputs, (kept.shape[0], weight.shape[-2]), y).to(
        weight.dtype, copy=True
    )


def check(
    index: Tensor,
    kept: Tensor,
    count: Tensor,
    weight: Tensor,
    inputs: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    if weight.dim() != 3:
        check_matrix(NAME, "weight", weight, (None, None))
    else:
        check_matrix(NAME, "weight", weight, (None, None, None))
    outputs, entries = sizes_of(weight)
    check_list(NAME, index, count, entries)
    check_matrix(NAME, "kept", kept, (None, entries))
    if kept.dtype != torch.float32:
        raise ValueError(f"tokenpass::{NAME}: kept must be float32, got {kept.dtype}")
    check_inputs(NAME, "epilogue", inputs, epilogue, (kept.shape[0], outputs), computed=True)


def sizes_of(weight: Tensor) -> tuple[int | torch.SymInt, int | torch.SymInt]:
    """(outputs, entries) of a weight, in blocks or not."""
    *blocks, outputs, size = weight.shape
    return outputs, math.prod(blocks) * size


def fake(
    index: Tensor,
    kept: Tensor,
    count: Tensor,
    weight: Tensor,
    inputs: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> Tensor:
    """Shape and dtype of the output."""
    check(index, kept, count, weight, inputs, epilogue)
    return weight.new_empty((kept.shape[0], weight.shape[-2]))


def cost(
    index: Tensor,
    kept: Tensor,
    count: Tensor,
    weight: Tensor,
    inputs: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> OpCost:
    """A product with the expected share of entries: how many are listed is known on the device."""
    rows, (outputs, entries) = kept.shape[0], sizes_of(weight)
    elements = product(rows, outputs)
    share = share_of(density)
    return OpCost(
        work="listed_rows",
        flops=share * 2 * product(rows, entries, outputs) + elements * flops(parse(epilogue)),
        dims=(product(), product(rows), product(outputs), share * product(entries)),
        calls=CALLS + text_calls(epilogue),
        unread=(1 - share) * product(entries, outputs) * weight.element_size(),
    )


def example(
    generator: torch.Generator, dtype: torch.dtype, *, rows: int, entries: int, outputs: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], str, float]:
    """Arguments of one call: any count that is possible, nonsense behind it."""
    text, blocks, *repeated = choose(generator, len(EPILOGUES), 2, 4, 4)
    index, count = example_list(generator, entries)
    kept = torch.randn(rows, entries, generator=generator)
    weight = torch.randn(outputs, entries, generator=generator).to(dtype)
    if blocks and entries % 2 == 0:
        weight = weight.unflatten(1, (2, entries // 2)).transpose(0, 1).contiguous()
    inputs = example_inputs(generator, dtype, (repeated[0], repeated[1]), (rows, outputs))
    return index, kept, count, weight, inputs, EPILOGUES[text], 1.0


def example_list(generator: torch.Generator, entries: int) -> tuple[Tensor, Tensor]:
    """A random list: no entry, some, or all of them."""
    share = float(torch.rand(1, generator=generator)) * 1.4 - 0.2
    active = torch.rand(entries, generator=generator) < share
    index = torch.argsort(active, descending=True, stable=True).to(torch.int32)
    index[int(active.sum()) :] = -7
    return index, active.sum(dtype=torch.int32).reshape(1)


OPERATOR = Operator(
    name=NAME,
    schema=(
        "(Tensor index, Tensor kept, Tensor count, Tensor weight, Tensor[] inputs, str epilogue,"
        " float density=1.0) -> Tensor"
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
