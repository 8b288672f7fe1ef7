"""Second copies of weights in the order in which a kernel reads them, made once.

A copy is used as long as the weight is what it was: the same memory, shape and version counter, and
the same values at some places, as writes through `.data` do not count. A changed weight is packed
anew; one that is gone takes its copy along. Kernels compare those values themselves: on a CUDA
device the host would have to wait for them, and there a kernel reads the weight where they differ.
"""

from __future__ import annotations

import ctypes
import math
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

HUGE_PAGE = 2**21
MADV_HUGEPAGE = 14

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

PROBES = 64
"""Values of a weight that are compared with those it had at every call."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A copy, and what its weight was when it was made.

    `owner`: that weight as an object, while it lives; `at`: its address. `probes` were its values
    at places `step` elements apart: a kernel that reads the copy compares them. There are none
    where the copy is the weight itself.
    """

    copy: Tensor
    owner: weakref.ref[Tensor]
    storage: StorageWeakRef
    version: int
    layout: tuple[object, ...]
    stride: tuple[int, ...]
    probes: Tensor
    step: int
    at: int

    @cached_property
    def arguments(self) -> tuple[int, ...]:
        """What a kernel is told: where the copy is and its row stride, then where the weight is,
        where the probes are, how many elements they were apart in the weight, and how many.
        """
        copy, known = self.copy, self.probes
        return (copy.data_ptr(), copy.stride(0), self.at, known.data_ptr(), self.step, len(known))

    def is_of(self, weight: Tensor) -> bool:
        """Whether this was made of a weight as it stands; its values are not looked at."""
        if self.version != weight._version or self.stride != weight.stride():
            return False
        if self.owner() is weight:
            return True
        return self.layout == layout_of(weight) and not self.storage.expired()

    def fits(self, weight: Tensor) -> bool:
        """Whether the weight is still what was copied."""
        return self.is_of(weight) and torch.equal(self.probes, probes(weight))


class PackedWeights:
    """Copies by the address of their weights."""

    def __init__(self) -> None:
        self._kept: dict[int, Packed] = {}

    def transposed(self, weight: Tensor) -> Tensor:
        """`[columns, rows]`, contiguous, of a weight `[rows, columns]`.

        Of `[blocks, rows, columns]` it is `[blocks columns, rows]`: one block below the other.
        Raises RuntimeError for tensors made in inference mode: their writes are not counted.
        """
        held = self.held(weight)
        return held.copy if not len(held.probes) or held.fits(weight) else self.renewed(weight).copy

    def held(self, weight: Tensor) -> Packed:
        """The copy for a kernel that compares the probes itself, and asks for `renewed` at need.

        This way to a copy touches little memory: at each call all of it has left the caches.
        """
        held = self._kept.get(weight.data_ptr())
        return held if held is not None and held.is_of(weight) else self.renewed(weight)

    def renewed(self, weight: Tensor) -> Packed:
        """A copy of the weight as it is now."""
        self.drop_lost()
        with torch.no_grad():
            turned = weight.detach().transpose(-1, -2)
            if turned.is_contiguous():  # it lies in that order already
                self._kept.pop(weight.data_ptr(), None)  # the view would keep the weight alive
                return made_of(weight, turned, probes(weight)[:0])
            if not weight.is_cuda:
                held = made_of(weight, large(turned).copy_(turned), probes(weight).clone())
            elif torch.cuda.is_current_stream_capturing():
                # What is recorded has not run yet: the copy is made anew at each replay.
                return made_of(weight, turned.contiguous(), probes(weight)[:0])
            else:
                held = packed_apart(weight)
        self._kept[weight.data_ptr()] = held
        return held

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


def made_of(weight: Tensor, copy: Tensor, found: Tensor) -> Packed:
    """The record of a copy, whose weight had `found` at its probed places."""
    return Packed(
        copy.flatten(0, -2),
        weakref.ref(weight),
        StorageWeakRef(weight.untyped_storage()),
        weight._version,
        layout_of(weight),
        weight.stride(),
        found,
        probe_step(weight),
        weight.data_ptr(),
    )


def packed_apart(weight: Tensor) -> Packed:
    """The copy of a weight on a CUDA device, ready for every stream when this returns.

    A thread of its own allocates it: memory that this thread allocates may belong to the pool of a
    CUDA graph that is being prepared, and the copy outlives that graph.
    """
    stream = torch.cuda.current_stream(weight.device)

    def work() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.cuda.device(weight.device), torch.cuda.stream(stream):
            turned = weight.detach().transpose(-1, -2)
            copies = turned.contiguous(), probes(weight).clone()
            stream.synchronize()
            return copies

    with ThreadPoolExecutor(1) as apart:
        return made_of(weight, *apart.submit(work).result())


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


def probe_count(weight: Tensor) -> int:
    """How many places of a weight are compared: lines that are spread evenly over all."""
    lines = probed_lines(weight)
    return -(-lines // lines_between(weight)) if weight.numel() else 0


def probe_step(weight: Tensor) -> int:
    """Elements between the places of a weight that are compared."""
    line = weight.stride(0 if apart(weight) else -2)
    across = weight.shape[-1] // max(probe_count(weight), 1)
    return line * lines_between(weight) + weight.stride(-1) * across


def probed_lines(weight: Tensor) -> int:
    """Lines of a weight among which places are spread: blocks where those do not adjoin."""
    return weight.shape[0] if apart(weight) else math.prod(weight.shape[:-1])


def lines_between(weight: Tensor) -> int:
    """Lines from one place to the next."""
    return max(1, -(-probed_lines(weight) // PROBES))


def apart(weight: Tensor) -> bool:
    """Whether a weight's blocks do not lie one below the other."""
    return weight.dim() == 3 and weight.stride(0) != weight.shape[1] * weight.stride(1)


def probes(weight: Tensor) -> Tensor:
    """The bits of a weight's values at places spread evenly: a view."""
    count, step = probe_count(weight), probe_step(weight)
    found = weight.detach().as_strided((count,), (step,), weight.storage_offset())
    return found.view(BITS[weight.element_size()])  # NaN is not equal to itself


PACKED = PackedWeights()
"""The copies of this process: graphs that share a weight share its copy."""
