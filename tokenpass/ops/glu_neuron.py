"""A gated MLP behind its gate, neuron by neuron: one list serves the rows of both weights."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenpass.ops import mask_compact, sparse_input_gemv, sparse_output_gemv
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

NAME = "glu_neuron"
CALLS = mask_compact.CALLS + sparse_output_gemv.CALLS + sparse_input_gemv.CALLS
"""Calls into torch that the reference makes without its texts; a test counts them."""


def glu_neuron(
    x: Float[Tensor, "rows width"],
    inputs: list[Float[Tensor, "rows neurons"]],
    prologue: str,
    threshold: Float[Tensor, "#neurons"] | None,
    up: Float[Tensor, "neurons width"],
    up_bias: Float[Tensor, " neurons"] | None,
    down: Float[Tensor, "outputs neurons"],
    extras: list[Float[Tensor, "rows outputs"]],
    epilogue: str = "y",
    density: float = 1.0,
) -> Float[Tensor, "rows outputs"]:
    """epilogue(y), y = sum over listed k of g_k (up[k] . x + up_bias[k]) down[:, k].

    g = prologue(inputs), listed as `mask_compact` lists it. Intermediate values are float32, the
    result has down's dtype; weights that are not listed are never read. `density` is the share
    that is expected to be listed, for the cost model. Gradients are refused.
    """
    call = torch.ops.tokenpass.glu_neuron.default
    return call(x, inputs, prologue, threshold, up, up_bias, down, extras, epilogue, density)


def reference(
    x: Tensor,
    inputs: list[Tensor],
    prologue: str,
    threshold: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    extras: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> Tensor:
    """`glu_neuron` by the references of the three operators that it joins."""
    check(x, inputs, prologue, threshold, up, up_bias, down, extras, epilogue)
    index, kept, count = mask_compact.reference(inputs, prologue, threshold)
    bias, text = ([], "y") if up_bias is None else ([up_bias[None]], "add(y, a0)")
    h = sparse_output_gemv.reference(x, index, count, up, bias, text)
    # Behind the list both are zero.
    return sparse_input_gemv.reference(index, kept * h, count, down, extras, epilogue)


def check(
    x: Tensor,
    inputs: list[Tensor],
    prologue: str,
    threshold: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    extras: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> None:
    """Raises ValueError where the arguments do not fit each other."""
    rows, neurons = common_size(NAME, inputs)
    check_inputs(NAME, "prologue", inputs, prologue, (rows, neurons), computed=False)
    mask_compact.check_threshold(NAME, threshold, neurons)
    check_matrix(NAME, "x", x, (rows, None))
    check_matrix(NAME, "up", up, (neurons, x.shape[1]))
    if up_bias is not None:
        check_matrix(NAME, "up_bias", up_bias, (neurons,))
    check_matrix(NAME, "down", down, (None, neurons))
    check_inputs(NAME, "epilogue", extras, epilogue, (rows, down.shape[0]), computed=True)


def fake(
    x: Tensor,
    inputs: list[Tensor],
    prologue: str,
    threshold: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    extras: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> Tensor:
    """Shape and dtype of the output."""
    check(x, inputs, prologue, threshold, up, up_bias, down, extras, epilogue)
    return down.new_empty((x.shape[0], down.shape[0]))


def cost(
    x: Tensor,
    inputs: list[Tensor],
    prologue: str,
    threshold: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    extras: list[Tensor],
    epilogue: str,
    density: float = 1.0,
) -> OpCost:
    """Two products with the expected share of neurons; the device alone knows how many it is."""
    (rows, width), (outputs, neurons) = x.shape, down.shape
    share = share_of(density)
    texts = product(rows, neurons) * (flops(parse(prologue)) + 3)
    texts += product(rows, outputs) * flops(parse(epilogue))
    both = width + outputs
    return OpCost(
        work="listed_rows",
        flops=share * 2 * product(rows, neurons, both) + texts,
        dims=(product(), product(rows), product(both), share * product(neurons)),
        calls=CALLS
        - 2 * (threshold is None)
        + 4 * (up_bias is not None)
        + text_calls(prologue)
        + text_calls(epilogue),
        unread=(1 - share) * product(neurons, both) * down.element_size(),
    )


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    rows: int,
    entries: int,
    width: int,
    outputs: int,
) -> tuple[
    Tensor,
    list[Tensor],
    str,
    Tensor | None,
    Tensor,
    Tensor | None,
    Tensor,
    list[Tensor],
    str,
    float,
]:
    """Arguments of one call, with the texts and thresholds of the operators that it joins."""
    text, biased, *repeated = choose(generator, len(EPILOGUES), 2, 4, 4)
    inputs, prologue, threshold = mask_compact.example(generator, dtype, rows=rows, entries=entries)
    x, up, bias, down = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((rows, width), (entries, width), (entries,), (outputs, entries))
    )
    extras = example_inputs(generator, dtype, (repeated[0], repeated[1]), (rows, outputs))
    own_bias = bias if biased else None
    return x, inputs, prologue, threshold, up, own_bias, down, extras, EPILOGUES[text], 1.0


OPERATOR = Operator(
    name=NAME,
    schema=(
        "(Tensor x, Tensor[] inputs, str prologue, Tensor? threshold, Tensor up, Tensor? up_bias,"
        " Tensor down, Tensor[] extras, str epilogue, float density=1.0) -> Tensor"
    ),
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    example=example,
    sizes={
        "rows": range(1, 10),
        "entries": range(40),
        "width": range(1, 40),
        "outputs": range(1, 40),
    },
    dtypes=DTYPES,
    gradient="refused",
)
