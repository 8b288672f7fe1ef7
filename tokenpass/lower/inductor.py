"""Inductor lowering: the graph goes through `compile_fx`, with Inductor's caches intact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule


def inductor_patches(setting: str | dict[str, Any] | None) -> dict[str, Any]:
    """Inductor's own options for a mode name or a mapping of options."""
    if setting is None:
        return {}
    if isinstance(setting, str):
        return dict(torch._inductor.list_mode_options().get(setting, {}))
    return dict(setting)


def lower_inductor(
    module: GraphModule, example_inputs: Sequence[Any], options: dict[str, Any]
) -> Callable[..., Any]:
    """Compile with Inductor; `options` are config patches as in `torch.compile(options=...)`.

    Tensors that the graph holds itself (thresholds) are no inputs, and no fake ones either.
    """
    # Inductor's own entry: importing compile_fx at the top would load all of Inductor
    inductor: Callable[..., Any] = torch._dynamo.lookup_backend("inductor")
    with constants_allowed(detect_fake_mode(example_inputs)):
        return inductor(module, list(example_inputs), config_patches=options or None)


@contextmanager
def constants_allowed(mode: FakeTensorMode | None) -> Iterator[None]:
    """Let a tracer meet tensors that are not fake."""
    if mode is None:
        yield
        return
    before, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        yield
    finally:
        mode.allow_non_fake_inputs = before
