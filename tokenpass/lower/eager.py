"""Eager lowering: the rewritten graph runs operator by operator. For tests and bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule, Interpreter


def lower_eager(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """A callable that interprets the graph."""
    # an interpreter keeps its last outputs: one for each call
    return lambda *inputs: Interpreter(module).run(*inputs)
