"""Running a bundle again: dense, edited by its plan, and the plan's reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter

from tokenpass.bundle.folder import PLAN, Bundle
from tokenpass.graph.view import analyse
from tokenpass.options import read_options
from tokenpass.pipeline import make_plan
from tokenpass.pipeline.facts import reference_of

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
COARSE = 3e-2
"""Distance that a lower precision may bring."""


@dataclass(frozen=True)
class Outcome:
    """Relative L2 distances, the largest of any output.

    `edits`: how many the plan has; None of the distances where it left the graph dense.
    `barriers`: operators that needed all tokens back, whose means the reference takes elsewhere.
    """

    edits: int
    barriers: int
    to_reference: float | None
    to_dense: float | None
    reference_to_dense: float | None
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the edited graph gives what its reference gives."""
        return self.to_reference is None or self.to_reference <= self.tolerance


def replay(bundle: Bundle) -> Outcome:
    """Plan as the bundle says and run all three; raises what planning or running raises."""
    captured = bundle.captured
    view = analyse(captured.module, list(captured.data_inputs), captured.examples)
    with TemporaryDirectory() as folder, torch.no_grad():
        options: dict[str, Any] = dict(bundle.options)
        if bundle.plan:
            file = Path(folder) / PLAN
            file.write_text(bundle.plan, encoding="utf-8")
            options = {"config": file}
        planned = make_plan(view, captured, read_options(options))
    dense = outputs(Interpreter(view.module).run(*bundle.inputs))
    dtype = next((x.dtype for x in dense), torch.float64)
    tolerance = TOLERANCE.get(dtype, COARSE)
    barriers = sum(rejection.code == "barrier" for rejection in planned.plan.rejections)
    if planned.module is None:
        return Outcome(0, barriers, None, None, None, tolerance)
    with torch.no_grad():
        got = outputs(Interpreter(planned.module).run(*bundle.inputs))
        expected = outputs(reference_of(planned).run(*bundle.inputs))
    return Outcome(
        len(planned.plan.edits),
        barriers,
        farthest(got, expected),
        farthest(got, dense),
        farthest(expected, dense),
        tolerance,
    )


def outputs(values: Any) -> list[Tensor]:
    """Floating outputs in order."""
    flat = values if isinstance(values, list | tuple) else [values]
    return [x for x in flat if isinstance(x, Tensor) and x.is_floating_point()]


def farthest(got: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative distance; infinite where shapes differ or a value is not finite."""
    worst = 0.0
    for x, y in zip(got, expected, strict=True):
        if x.shape != y.shape or not torch.isfinite(x).all():
            return float("inf")
        worst = max(worst, float((x - y).norm() / y.norm().clamp_min(1e-30)))
    return worst
