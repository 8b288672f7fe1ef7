"""Kernels beside the references of their operators, over a grid of sizes and the exact cases."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import torch

from tokenpass.ops import OPERATORS

OPERATOR = {operator.name: operator for operator in OPERATORS}
ORACLES = Path(__file__).parents[1] / "ops" / "oracles"

SIZES = {
    "batch": (1, 3),
    "tokens": (0, 1, 2, 7, 64, 131),
    "width": (1, 40, 65),
}
SLOW = 40
"""Largest size at which the oracle, which is slow, is asked too."""


def check_grid(launch, operator, dtype, spans=SIZES):
    """Every combination of `spans` that the operator has; the number of cases."""
    names = list(operator.sizes)
    grid = list(itertools.product(*(spans[name] for name in names)))
    for seed, sizes in enumerate(grid):
        generator = torch.Generator().manual_seed(seed)
        arguments = operator.example(generator, dtype, **dict(zip(names, sizes, strict=True)))
        results = flat(launch(*arguments))
        if max(sizes) <= SLOW:
            oracle_of(operator.name).assert_correct(arguments, results)
        for got, want in zip(results, flat(operator.reference(*arguments)), strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            if got.dtype.is_floating_point:
                assert_as_close(got, want)
    return len(grid)


def flat(results):
    """An operator's results as a tuple, one tensor too."""
    return results if isinstance(results, tuple) else (results,)


def assert_as_close(got, want):
    """Equal but for the order of float32 sums, and where rounded once more, the last place."""
    last_place = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(want.dtype, 2e-6)
    torch.testing.assert_close(got, want, rtol=last_place, atol=2e-6)


def check_exact(launch, operator, dtype):
    """The oracle's exact cases, contiguous and as views with other strides; how many there are."""
    cases = list(oracle_of(operator.name).exact_cases())
    for arguments, expected in cases:
        for change in (torch.clone, strided, shifted):
            changed = [altered(value, dtype, change) for value in arguments]
            for got, want in zip(flat(launch(*changed)), expected, strict=True):
                assert got.tolist() == want, (got, want)
    return len(cases)


def altered(value, dtype, change):
    """A floating tensor in another dtype and layout; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return change(value.to(dtype))
    return value


def strided(x):
    """The same numbers, every second of a wider tensor."""
    return torch.stack([x, torch.full_like(x, 9.0)], dim=-1)[..., 0]


def shifted(x):
    """The same numbers at an odd address, rows further apart than they are long."""
    if x.dim() == 0:
        return x
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), 9.0)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def oracle_of(name):
    """The module `oracles/<name>.py` beside the operators' tests."""
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", ORACLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
