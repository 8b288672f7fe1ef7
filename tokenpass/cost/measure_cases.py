"""What is timed to make a device profile: small calls of the kernels that Inductor would run.

On the CPU a compiled model calls the same library routines as eager torch for `linear` (MKL
through `addmm`), convolution (oneDNN) and attention (the flash kernel), so eager calls measure
them; generated pointwise kernels use the same vector library as eager's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

# Grid points. Rates vary slowly between them, and a point must take milliseconds, because on a
# busy machine only short calls ever run undisturbed.
GEMM_M = (1, 8, 32, 64, 128, 256, 512, 1024, 2048)
GEMM_NK = (64, 256, 768, 1536, 4096)
BMM_MN = (32, 128, 512)
BMM_K = (32, 64, 128, 512)
QUERIES = (1, 32, 128, 256, 512, 1024, 2048)
KEYS = (32, 128, 256, 512, 1024, 2048)
HEAD_DIMS = (64, 128)
MOVED_BYTES = tuple(48 * 2**10 * 4**step for step in range(7))

LARGEST_FLOPS = 3.5e9

# Weights rotate through a pool larger than the last cache, as the layers of a model do.
POOL_ELEMENTS = 32 * 2**20

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One timed call: which table it fills, at which coordinates, and its work per call."""

    table: str
    point: tuple[int, ...]
    work: float
    call: Call


class _Pool:
    """Random numbers to take operands from; `fresh` moves on at each call, so caches are cold."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator(device=device).manual_seed(0)
        noise = torch.randn(2**20, device=device, generator=generator).to(dtype)
        self._numbers = noise.repeat(POOL_ELEMENTS // 2**20)
        self._next = 0

    def fixed(self, *shape: int) -> torch.Tensor:
        return self._numbers[: torch.Size(shape).numel()].view(shape)

    def fresh(self, *shape: int) -> torch.Tensor:
        size = torch.Size(shape).numel()
        if self._next + size > POOL_ELEMENTS:
            self._next = 0
        start, self._next = self._next, self._next + size
        return self._numbers[start : start + size].view(shape)


def shape_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Cases of the tables over shapes: gemm, bmm, conv, attention, masked_attention."""
    pool = _Pool(device, dtype)
    for m, n, k in itertools.product(GEMM_M, GEMM_NK, GEMM_NK):
        if 2 * m * n * k <= LARGEST_FLOPS:
            yield _gemm(pool, m, n, k)
    for m, n, k in itertools.product(BMM_MN, BMM_MN, BMM_K):
        yield _bmm(pool, m, n, k)
    for m in (196, 784):
        yield _conv(pool, m)
    for q, k, d in itertools.product(QUERIES, KEYS, HEAD_DIMS):
        yield _attention(pool, q, k, d, masked=False)
        yield _attention(pool, q, k, d, masked=True)


def _gemm(pool: _Pool, m: int, n: int, k: int) -> Case:
    x, bias = pool.fixed(m, k), pool.fixed(n)
    return Case("gemm", (m, n, k), 2.0 * m * n * k, lambda: F.linear(x, pool.fresh(n, k), bias))


def _bmm(pool: _Pool, m: int, n: int, k: int) -> Case:
    batch = max(4, min(64, int(2e8 / (2 * m * n * k))))
    a, b = pool.fixed(batch, m, k), pool.fixed(batch, k, n)
    return Case("bmm", (m, n, k), 2.0 * batch * m * n * k, lambda: torch.bmm(a, b))


def _conv(pool: _Pool, m: int) -> Case:
    images = pool.fixed(m // 196, 3, 224, 224)
    weight, bias = pool.fixed(768, 3, 16, 16), pool.fixed(768)
    return Case(
        "conv",
        (m, 768, 768),
        2.0 * m * 768 * 768,
        lambda: F.conv2d(images, weight, bias, stride=16),
    )


def _attention(pool: _Pool, q: int, k: int, d: int, masked: bool) -> Case:
    """Operands laid out as projections leave them: [batch, tokens, heads, dim], transposed."""
    heads = max(4, min(64, int(4e8 / (4 * q * k * d))))
    query = pool.fixed(1, q, heads, d).transpose(1, 2)
    key, value = (pool.fixed(1, k, heads, d).transpose(1, 2) for _ in range(2))
    mask = pool.fixed(1, 1, 1, k).expand(1, 1, q, k) if masked else None
    name = "masked_attention" if masked else "attention"
    return Case(
        name,
        (q, k, d),
        4.0 * heads * q * k * d,
        lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=mask),
    )


def stream_cases(device: torch.device) -> Iterator[Case]:
    """Cases of the bandwidth curve: x + y into a new buffer, bytes moved per call."""
    pool = _Pool(device, torch.float32)
    for moved in MOVED_BYTES:
        size = moved // 12
        x, y = pool.fixed(2, size)
        yield Case("bandwidth", (moved,), float(moved), lambda x=x, y=y: x + y)


def element_cases(device: torch.device) -> Iterator[Case]:
    """Cases of the rates per element, on values that stay in a cache, and of call overheads."""
    pool = _Pool(device, torch.float32)
    small, rows = pool.fixed(2**16), pool.fixed(96, 768)
    gain, bias = pool.fixed(2, 768)
    index = torch.arange(95, -1, -1, device=device)
    wide = index.repeat(768, 1).T.contiguous()
    scores = pool.fixed(8, 256)
    tiny, matrix = pool.fixed(8), pool.fixed(8, 8)
    count = float(rows.numel())

    def norm() -> torch.Tensor:
        return F.layer_norm(rows, (768,), gain, bias)

    yield Case("pointwise", (), 65536.0, lambda: small * small)
    yield Case("special", (), 65536.0, lambda: F.gelu(small))
    yield Case("reduction", (), count, norm)
    yield Case("gather", (), count, lambda: rows[index])
    yield Case("scatter", (), count, lambda: torch.scatter_add(rows, 0, wide, rows))
    yield Case("sort", (), 2048.0, lambda: torch.sort(scores, dim=-1))
    yield Case("launch", (), 1.0, lambda: tiny + tiny)
    yield Case("call", (), 1.0, lambda: F.linear(tiny, matrix, tiny))
