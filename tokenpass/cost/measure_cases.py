"""What is timed to make a device profile: small calls of the kernels that Inductor would run.

On the CPU a compiled model calls the same library routines as eager torch for `linear` (MKL
through `addmm`), convolution (oneDNN) and attention (the flash kernel), so eager calls measure
them; generated pointwise kernels use the same vector library as eager's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from tokenpass.cost.sizes import dtype_name

Axes = Mapping[str, Mapping[str, tuple[int, ...]]]

# Grid points per table. Rates vary slowly between them, and a point must take milliseconds,
# because on a busy machine only short calls ever run undisturbed.
FINE: Axes = {
    "gemm": {
        "m": (1, 8, 32, 64, 128, 256, 512, 1024, 2048),
        "n": (64, 256, 768, 1536, 4096),
        "k": (64, 256, 768, 1536, 4096),
    },
    "bmm": {"m": (32, 128, 512), "n": (32, 128, 512), "k": (32, 64, 128, 512)},
    "conv": {"m": (196, 784), "n": (768,), "k": (768,)},
    "attention": {
        "queries": (1, 32, 128, 256, 512, 1024, 2048),
        "keys": (32, 128, 256, 512, 1024, 2048),
        "head_dim": (64, 128),
    },
    "masked_attention": {
        "queries": (1, 32, 128, 256, 512, 1024, 2048),
        "keys": (32, 128, 256, 512, 1024, 2048),
        "head_dim": (64, 128),
    },
}

COARSE: Axes = {
    "gemm": {
        "m": (1, 4, 8, 32, 128, 512),
        "n": (256, 1024, 4096),
        "k": (256, 1024, 4096),
    },
    "bmm": {"m": (32, 128), "n": (32, 128), "k": (64,)},
    "conv": {"m": (196,), "n": (768,), "k": (768,)},
    "attention": {"queries": (1, 128, 512), "keys": (128, 512), "head_dim": (64,)},
    "masked_attention": {"queries": (1, 128, 512), "keys": (128, 512), "head_dim": (64,)},
}

MOVED_BYTES = tuple(48 * 2**10 * 4**step for step in range(7))

# Weights rotate through a pool larger than the last cache, as the layers of a model do.
POOL_ELEMENTS = 32 * 2**20

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One timed call: which table it fills, at which coordinates, and its work per call.

    `warm` calls run once untimed first: a generated kernel reads what the kernel before it wrote.
    `probe` calls tell what threads gain.
    """

    table: str
    point: tuple[int, ...]
    work: float
    call: Call
    dtype: str = "float32"
    warm: bool = False
    probe: bool = False


class Pool:
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


def shape_cases(
    device: torch.device, dtype: torch.dtype, axes: Axes, largest_flops: float
) -> Iterator[Case]:
    """Cases of the tables over shapes, at the grid points that do no more than `largest_flops`."""
    pool = Pool(device, dtype)
    builders = {
        "gemm": _gemm,
        "bmm": _bmm,
        "conv": _conv,
        "attention": _attention,
        "masked_attention": _masked_attention,
    }
    for table, build in builders.items():
        grid = list(axes[table].values())
        # Short calls: only those are ever seen with all threads undisturbed on a busy machine.
        small = tuple(axis[(len(axis) - 1) // 3] for axis in grid[1:])
        for point in itertools.product(*grid):
            work, call = build(pool, *point)
            if work <= largest_flops:
                probe = point[1:] == small
                yield Case(table, point, work, call, dtype_name(dtype), probe=probe)


def _gemm(pool: Pool, m: int, n: int, k: int) -> tuple[float, Call]:
    x, bias = pool.fixed(m, k), pool.fixed(n)
    return 2.0 * m * n * k, lambda: F.linear(x, pool.fresh(n, k), bias)


def _bmm(pool: Pool, m: int, n: int, k: int) -> tuple[float, Call]:
    batch = max(4, min(64, int(2e8 / (2 * m * n * k))))
    a, b = pool.fixed(batch, m, k), pool.fixed(batch, k, n)
    return 2.0 * batch * m * n * k, lambda: torch.bmm(a, b)


def _conv(pool: Pool, m: int, n: int, k: int) -> tuple[float, Call]:
    """Patches of 16 x 16 pixels in 3 channels (k = 768), 196 of them in an image."""
    images = pool.fixed(m // 196, 3, 224, 224)
    weight, bias = pool.fixed(n, 3, 16, 16), pool.fixed(n)
    return 2.0 * m * n * k, lambda: F.conv2d(images, weight, bias, stride=16)


def _attention(pool: Pool, q: int, k: int, d: int, masked: bool = False) -> tuple[float, Call]:
    """Operands laid out as projections leave them: [batch, tokens, heads, dim], transposed."""
    heads = max(4, min(64, int(1e8 / (4 * q * k * d))))
    query = pool.fixed(1, q, heads, d).transpose(1, 2)
    key = pool.fixed(1, k, heads, d).transpose(1, 2)
    mask = pool.fixed(1, 1, 1, k).expand(1, 1, q, k) if masked else None
    return (
        4.0 * heads * q * k * d,
        lambda: F.scaled_dot_product_attention(query, key, key, attn_mask=mask),
    )


def _masked_attention(pool: Pool, q: int, k: int, d: int) -> tuple[float, Call]:
    return _attention(pool, q, k, d, masked=True)


def stream_cases(device: torch.device) -> Iterator[Case]:
    """Cases of the bandwidth curve: x + y into a new buffer, bytes moved per call."""
    pool = Pool(device, torch.float32)
    for moved in MOVED_BYTES:
        size = moved // 12
        x, y = pool.fixed(2, size)
        yield Case(
            "bandwidth", (moved,), float(moved), lambda x=x, y=y: x + y, warm=True, probe=True
        )


def element_cases(device: torch.device) -> Iterator[Case]:
    """Cases of the rates per element, on values that stay in a cache, and of call overheads."""
    pool = Pool(device, torch.float32)
    small, rows = pool.fixed(2**16), pool.fixed(96, 768)
    gain, bias = pool.fixed(2, 768)
    index = torch.arange(95, -1, -1, device=device)
    wide = index.unsqueeze(1).expand(-1, 768)
    scores = pool.fixed(8, 256)
    tiny, matrix = pool.fixed(8), pool.fixed(8, 8)
    count = float(rows.numel())

    def norm() -> torch.Tensor:
        return F.layer_norm(rows, (768,), gain, bias)

    timed: tuple[tuple[str, float, Call], ...] = (
        ("pointwise", 65536.0, lambda: small * small),
        ("special", 65536.0, lambda: F.gelu(small)),
        ("reduction", count, norm),
        ("gather", count, lambda: rows.index_select(0, index)),
        ("scatter", count, lambda: torch.scatter_add(rows, 0, wide, rows)),
        ("sort", 2048.0, lambda: torch.sort(scores, dim=-1)),
        ("launch", 1.0, lambda: tiny + tiny),
        ("call", 1.0, lambda: F.linear(tiny, matrix, tiny)),
    )
    for table, work, call in timed:
        yield Case(table, (), work, call, warm=True, probe=True)
