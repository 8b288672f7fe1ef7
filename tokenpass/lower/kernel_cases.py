"""What `tokenpass device` times of our own kernels: bytes of a weight per second, and a launch.

The cost model takes them as arguments, for it knows no kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tokenpass.codegen import TEMPLATES
from tokenpass.cost.measure_cases import Case, Pool
from tokenpass.cost.sizes import dtype_name
from tokenpass.lower.kernels import installed_kernels

ROWS = (1, 2, 4, 8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OUTPUTS, WIDTH = 1024, 2048
"""A small weight: what starting a kernel costs when nothing of it is in a cache is in its rate."""
WEIGHTS = 16
"""Weights that take turns, together more than a cache holds."""
LISTED = 0.25
"""Share of entries that are listed, of weights with as many times more: as much is read."""


def kernel_cases(device: torch.device) -> Iterator[Case]:
    """The cases of a device's kernels; none where it has none of them.

    "few_rows" reads whole weights, "listed_rows" those of a list; "kernel_launch" starts a kernel.
    """
    served = {template.operator for template in TEMPLATES if template.device == device.type}
    if not {"few_rows_linear", "sparse_linear"} <= served:
        return
    installed_kernels()
    few = torch.ops.tokenpass.few_rows_linear.default
    listed = torch.ops.tokenpass.sparse_linear.default
    for dtype in DTYPES:
        pool = Pool(device, dtype)
        weights = [pool.fresh(OUTPUTS, WIDTH) for _ in range(WEIGHTS)]
        turn = Turn(weights)
        larger = [pool.fresh(2 * OUTPUTS, 2 * WIDTH) for _ in range(max(1, WEIGHTS // 4))]
        large_turn = Turn(larger)
        size = float(weights[0].numel() * weights[0].element_size())
        for rows in ROWS:
            x, sparse = pool.fixed(rows, WIDTH), pool.fixed(rows, 2 * WIDTH).clone()
            places = torch.rand(2 * WIDTH, generator=torch.Generator().manual_seed(rows))
            sparse[:, places.to(device) >= LISTED] = 0.0
            yield Case(
                "few_rows",
                (rows,),
                size,
                lambda x=x, turn=turn: few([x], "a0", turn(), [], "y"),
                dtype_name(dtype),
                probe=True,
            )
            for weight in larger:  # its copy is made once, and not timed
                listed([sparse], "a0", None, weight, [], "y")
            yield Case(
                "listed_rows",
                (rows,),
                4 * size * float((sparse != 0).any(0).float().mean()),
                lambda x=sparse, turn=large_turn: listed([x], "a0", None, turn(), [], "y"),
                dtype_name(dtype),
                probe=True,
            )
    tiny, square = torch.ones(1, 8, device=device), torch.ones(8, 8, device=device)
    yield Case(
        "kernel_launch",
        (),
        1.0,
        lambda: few([tiny], "a0", square, [], "y"),
        warm=True,
        probe=True,
    )


class Turn:
    """Gives one weight after the other."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights, self.at = weights, 0

    def __call__(self) -> torch.Tensor:
        self.at += 1
        return self.weights[self.at % len(self.weights)]
