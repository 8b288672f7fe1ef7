"""Tracing helpers of the cost tests: graphs like those that capture makes, and a toy device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from tokenpass.cost.device import DeviceProfile
from tokenpass.cost.rates import RateTable

Trace = Callable[..., fx.GraphModule]


def trace_graph(
    function: Callable[..., object],
    *examples: torch.Tensor,
    symbolic: dict[int, tuple[int, ...]] | None = None,
) -> fx.GraphModule:
    """The pre-dispatch ATen graph; `symbolic` names, by argument, the dimensions with a symbol."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = []
    for place, example in enumerate(examples):
        free = (symbolic or {}).get(place, ())
        kinds = [
            DimDynamic.DYNAMIC if dim in free else DimDynamic.STATIC for dim in range(example.dim())
        ]
        context = StatelessSymbolicContext(dynamic_sizes=kinds)
        fakes.append(mode.from_tensor(example, symbolic_context=context))
    with mode, torch.no_grad():
        return make_fx(function, pre_dispatch=True)(*fakes)


@pytest.fixture(scope="session")
def trace() -> Trace:
    return trace_graph


@pytest.fixture(scope="session")
def toy() -> DeviceProfile:
    """Round numbers: 100 GFLOP/s at any shape, 10 GB/s, 1 G elements/s, 1 us and 2 us to start."""
    shaped = {"float32": RateTable(axes={"m": (1,), "n": (1,), "k": (1,)}, values=(100,))}
    tokens = {"float32": RateTable(axes={"q": (1,), "k": (1,), "d": (1,)}, values=(50,))}
    return DeviceProfile(
        name="toy",
        kind="cpu",
        gemm_gflop_per_s=shaped,
        attention_gflop_per_s=tokens,
        bandwidth_gb_per_s=RateTable(axes={"bytes": (1,)}, values=(10,)),
        element_g_per_s={"pointwise": 1.0, "special": 0.25, "reduction": 0.5},
        launch_us=1.0,
        call_us=2.0,
    )
