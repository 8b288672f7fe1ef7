"""The instruction sets that C++ kernels are written for, and which of them this machine has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")

AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class Isa:
    """One instruction set: what the processor must list, what the compiler is told, float lanes."""

    name: str
    needs: tuple[str, ...]
    flags: tuple[str, ...]
    lanes: int


def _flags(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"-m{name.replace('_', '')}" for name in names)


ISAS: dict[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa(
            "avx512_bf16",
            (*AVX512, "avx512_bf16"),
            (*_flags((*AVX512, "avx512_bf16")), "-mprefer-vector-width=512"),
            16,
        ),
        Isa("avx512", AVX512, (*_flags(AVX512), "-mprefer-vector-width=512"), 16),
        Isa("avx2", AVX2, _flags(AVX2), 8),
        Isa("scalar", (), (), 4),  # the compiler's default: SSE2 on x86-64, NEON on 64-bit ARM
    )
}
"""Best first."""


_ASSUMED: ContextVar[str | None] = ContextVar("assumed", default=None)


@contextmanager
def assumed(name: str | None) -> Iterator[None]:
    """Sources are written for one instruction set, whatever this machine has; None: for its own.

    Such sources are to be looked at, not to be run.
    """
    token = _ASSUMED.set(name)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def written_for(names: Iterable[str]) -> str:
    """The best of `names` for the assumed instruction set, or for this machine."""
    order, wanted = tuple(ISAS), _ASSUMED.get()
    if wanted is None:
        return available(names)[0]
    return next(name for name in names if order.index(name) >= order.index(wanted))


@cache
def processor_flags() -> frozenset[str]:
    """What Linux says that this processor and the system can do; empty where it does not say."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(found.split(":", 1)[1].split())


def available(names: Iterable[str] = tuple(ISAS)) -> tuple[str, ...]:
    """Those of `names` that this machine can run, in their order; "scalar" always can."""
    flags = processor_flags()
    return tuple(name for name in names if flags.issuperset(ISAS[name].needs))
