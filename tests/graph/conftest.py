"""Traces small functions into graphs like those that capture makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from tokenpass.tracing import retrace


@pytest.fixture(scope="session", autouse=True)
def _two_equal_ranks() -> Iterator[None]:
    """A process group of two ranks that both hold what this process holds."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


class Waiting(TorchDispatchMode):
    """Waits for what collectives give: torch complains at its end of what nobody waited for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = func.namespace.startswith("_c10d_functional")
        return torch.ops._c10d_functional.wait_tensor.default(out) if given else out


@pytest.fixture(autouse=True)
def _waiting(request: pytest.FixtureRequest) -> Iterator[None]:
    """Trials of a collective wait for it."""
    target = getattr(request.node, "callspec", None) and request.node.callspec.params.get("target")
    with Waiting() if "c10d_functional" in str(target) else nullcontext():
        yield


def trace_graph(function, *examples, dynamic=(), simpler=None) -> GraphModule:
    """The pre-dispatch graph; `dynamic` lists (argument, dimension) pairs that have a symbol.

    `simpler`: decompositions that capture would apply.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = []
    for place, example in enumerate(examples):
        kinds = [
            DimDynamic.DYNAMIC if (place, dim) in dynamic else DimDynamic.STATIC
            for dim in range(example.dim())
        ]
        context = StatelessSymbolicContext(dynamic_sizes=kinds)
        fakes.append(mode.from_tensor(example, symbolic_context=context))
    with torch.no_grad():
        return retrace(function, fakes, mode, simpler)


@pytest.fixture
def trace():
    return trace_graph


@pytest.fixture
def named():
    """Nodes of a graph by name."""
    return lambda module: {node.name: node for node in module.graph.nodes}
