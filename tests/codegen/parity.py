"""Kernels beside the references of their operators, over a grid of sizes and the exact cases."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import torch

from tests.ops.oracle_texts import CLOSE
from tokenpass.ops import OPERATORS

OPERATOR = {operator.name: operator for operator in OPERATORS}
ORACLES = Path(__file__).parents[1] / "ops" / "oracles"

SIZES = {
    "batch": (1, 3),
    "tokens": (0, 1, 2, 7, 64, 131),
    "width": (1, 40, 65),
    "rows": (1, 3, 9),
    "entries": (0, 1, 37, 130),
    "outputs": (1, 33, 150),
    "columns": (1, 5, 16, 131),
}
SLOW = 40
"""Largest size at which the oracle, which is slow, is asked too."""


def check_grid(launch, operator, dtype, most=None, spans=SIZES):
    """The combinations of `spans` that the operator has; the number of cases.

    `most` of them, spread over the grid, where a compiler would take long for all.
    """
    names = list(operator.sizes)
    grid = list(enumerate(itertools.product(*(spans[name] for name in names))))
    for seed, sizes in grid if most is None else grid[:: -(-len(grid) // most)]:
        generator = torch.Generator().manual_seed(seed)
        arguments = operator.example(generator, dtype, **dict(zip(names, sizes, strict=True)))
        results = launch(*arguments)
        if max(sizes) <= SLOW:
            oracle_of(operator.name).assert_correct(arguments, results)
        assert_agree(operator, arguments, results, operator.reference(*arguments))
    return len(grid)


def assert_agree(operator, arguments, results, wanted):
    """Kernel and reference: the same numbers, but for rounding and what is unspecified."""
    oracle = oracle_of(operator.name)
    for got, want in zip(flat(results), flat(wanted), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
    seen = [visible(oracle, arguments, one) for one in (results, wanted)]
    for got, want in zip(*seen, strict=True):
        if operator.name == "bipartite_match":
            if got.dtype.is_floating_point:
                torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
        elif got.dtype.is_floating_point and operator.gradient != "refused":
            assert_as_close(got, want)
        elif got.dtype.is_floating_point:
            scale = max(1.0, float(want.float().abs().max()) if want.numel() else 1.0)
            rtol, atol = CLOSE[got.dtype].values()
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol * scale)
        else:
            assert torch.equal(got, want)


def flat(results):
    """Results as a tuple, also where there is one."""
    return results if isinstance(results, tuple) else (results,)


def assert_as_close(got, want):
    """Equal but for the order of float32 sums, and where rounded once more, the last place."""
    last_place = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(want.dtype, 2e-6)
    torch.testing.assert_close(got, want, rtol=last_place, atol=2e-6)


def visible(oracle, arguments, results):
    """The results without what is unspecified."""
    cut = getattr(oracle, "visible", None)
    return cut(arguments, results) if cut else flat(results)


def check_exact(launch, operator, dtype):
    """The oracle's exact cases, contiguous and as views with other strides; how many there are."""
    cases = list(oracle_of(operator.name).exact_cases())
    oracle = oracle_of(operator.name)
    fixed = getattr(oracle, "FLOAT32", ())
    for arguments, expected in cases:
        for change in (torch.clone, strided, shifted):
            changed = [
                altered(value, torch.float32 if place in fixed else dtype, change)
                for place, value in enumerate(arguments)
            ]
            results = visible(oracle, changed, launch(*changed))
            for got, want in zip(results, expected, strict=True):
                rounded = torch.tensor(want, dtype=got.dtype).reshape(got.shape)
                assert torch.equal(got, rounded), (got, want)
    return len(cases)


def altered(value, dtype, change):
    """A tensor in another layout, a floating one in another dtype; anything else as it is."""
    if isinstance(value, list):
        return [altered(one, dtype, change) for one in value]
    if isinstance(value, torch.Tensor):
        return change(value.to(dtype) if value.is_floating_point() else value)
    return value


def strided(x):
    """The same numbers, every second of a wider tensor."""
    return torch.stack([x, torch.full_like(x, 9)], dim=-1)[..., 0]


def shifted(x):
    """The same numbers at an odd address, rows further apart than they are long."""
    if x.dim() == 0:
        return x
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), 9)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def oracle_of(name):
    """The module `oracles/<name>.py` beside the operators' tests."""
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", ORACLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
