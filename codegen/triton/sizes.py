"""What the templates of token operators share: Triton's names of dtypes, and block sizes."""

from __future__ import annotations

import torch

from tokenpass.codegen.base import Argument
from tokenpass.edits import Rejection

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Triton's name of each dtype that the kernels read; sums are float32 for all of them."""

MAX_GRID_Y = 65535
"""Most blocks that CUDA allows in the second dimension of a grid."""

MAX_SAMPLE_ELEMENTS = 2**31 - 1
"""Offsets within one sample are 32-bit in the kernels."""


def power_of_two(size: int | None, least: int, most: int) -> int:
    """The next power of two within bounds; `most` where the size is not known."""
    if size is None:
        return most
    return min(most, max(least, 1 << max(0, size - 1).bit_length()))


def unsupported(template: str, given: Argument | None) -> Rejection | None:
    """Why a kernel cannot read a tensor `[batch, .., width]`; None if it can."""
    if given is not None and given.dtype == torch.float64:
        return Rejection("kernel_double", template, "values are torch.float64")
    if given is None or given.dtype not in TYPES:
        named = None if given is None else given.dtype
        return Rejection("kernel_dtype", template, f"values are {named}", "cast to float32")
    elements = 1
    for size in given.shape[1:]:
        elements *= 1 if size is None else size
    if elements > MAX_SAMPLE_ELEMENTS:
        return Rejection("kernel_shape", template, f"{elements} in a sample need 64-bit offsets")
    return None
