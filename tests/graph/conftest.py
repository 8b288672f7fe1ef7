"""Traces small functions into graphs like those that capture makes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.testing._internal.distributed.fake_pg import FakeStore

from tokenpass.tracing import retrace


@pytest.fixture(scope="session", autouse=True)
def _two_equal_ranks() -> Iterator[None]:
    """A process group of two ranks that both hold what this process holds."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


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
