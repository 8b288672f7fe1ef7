"""Second copies of weights in the order in which a kernel reads them, made once.

A copy is used as long as the weight is what it was: the same memory, shape and version counter, and
the same values at some places, as writes through `.data` do not count. A changed weight is packed
anew; one that is gone takes its copy along.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

HUGE_PAGE = 2**21
MADV_HUGEPAGE = 14

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

PROBES = 64
"""Values of a weight that are compared with its copy at every call."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A copy, and what its weight was when it was made."""

    copy: Tensor
    storage: StorageWeakRef
    version: int
    layout: tuple[object, ...]
    probes: Tensor

    def fits(self, weight: Tensor) -> bool:
        """Whether the weight is still what was copied."""
        return (
            self.version == weight._version
            and self.layout == layout_of(weight)
            and not self.storage.expired()
            and torch.equal(self.probes, probes(weight))
        )


class PackedWeights:
    """Copies by the address of their weights."""

    def __init__(self) -> None:
        self._kept: dict[int, Packed] = {}

    def transposed(self, weight: Tensor) -> Tensor:
        """`[columns, rows]`, contiguous, of a weight `[rows, columns]`.

        Of `[blocks, rows, columns]` it is `[blocks columns, rows]`: one block below the other.
        Raises RuntimeError for tensors made in inference mode: their writes are not counted.
        """
        held = self._kept.get(weight.data_ptr())
        if held is not None and held.fits(weight):
            return held.copy
        self.drop_lost()
        with torch.no_grad():
            turned = weight.detach().transpose(-1, -2)
            if turned.is_contiguous():  # it lies in that order already
                return turned.flatten(0, -2)
            copy = large(turned).copy_(turned).flatten(0, -2)
            held = Packed(
                copy,
                StorageWeakRef(weight.untyped_storage()),
                weight._version,
                layout_of(weight),
                probes(weight).clone(),
            )
        self._kept[weight.data_ptr()] = held
        return copy

    def drop_lost(self) -> None:
        """Forget the copies of weights that are gone."""
        self._kept = {at: one for at, one in self._kept.items() if not one.storage.expired()}

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    @property
    def bytes(self) -> int:
        """What all copies take."""
        self.drop_lost()
        return sum(one.copy.numel() * one.copy.element_size() for one in self._kept.values())


def large(like: Tensor) -> Tensor:
    """New memory of a tensor's shape, in huge pages where the system has some to give.

    Rows are read in an irregular order, and each page that is looked up anew costs more than a row.
    """
    made = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    size = made.numel() * made.element_size()
    if sys.platform == "linux" and made.device.type == "cpu" and size >= 2 * HUGE_PAGE:
        start = -(-made.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        length = (made.data_ptr() + size - start) // HUGE_PAGE * HUGE_PAGE
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(MADV_HUGEPAGE))
    return made


def layout_of(weight: Tensor) -> tuple[object, ...]:
    """How a weight lies in memory."""
    return weight.dtype, weight.shape, weight.stride()


def probes(weight: Tensor) -> Tensor:
    """The bits of a weight's values at places spread evenly: a view."""
    if weight.dim() == 3:
        return blocks_probes(weight)
    rows, columns = weight.shape
    count = min(PROBES, rows)
    step, across = max(1, rows // count), columns // max(count, 1)
    strides = (weight.stride(0) * step + weight.stride(1) * across,)
    found = weight.detach().as_strided((count,), strides, weight.storage_offset())
    return found.view(BITS[weight.element_size()])  # NaN is not equal to itself


def blocks_probes(weight: Tensor) -> Tensor:
    """The same for a weight in blocks: one at least of each."""
    blocks, rows, columns = weight.shape
    count = min(max(1, PROBES // max(blocks, 1)), rows)
    step, across = max(1, rows // max(count, 1)), columns // max(count, 1)
    strides = weight.stride(0), weight.stride(1) * step + weight.stride(2) * across
    middle = columns // 2 if count == 1 else 0
    start = weight.storage_offset() + weight.stride(2) * middle
    found = weight.detach().as_strided((blocks, count), strides, start)
    return found.contiguous().view(BITS[weight.element_size()])


PACKED = PackedWeights()
"""The copies of this process: graphs that share a weight share its copy."""
