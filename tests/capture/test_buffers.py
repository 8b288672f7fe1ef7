"""Buffers that slices fill become concatenations; where that would be wrong they stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from tokenpass.capture.buffers import without_filled_buffers
from tokenpass.tracing import calls, retrace

aten = torch.ops.aten


def traced(function: Callable[..., Tensor]) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """A function of `[2, 5, 4]` and `[2, 5, 3]` as capture has it before, and its arguments."""
    given = (torch.randn(2, 5, 4), torch.randn(2, 5, 3))
    mode = torch._subclasses.FakeTensorMode()
    fakes = [mode.from_tensor(x) for x in given]
    return retrace(function, fakes, mode), given


def targets(module: GraphModule) -> list[object]:
    return [node.target for node in calls(module.graph)]


def side_by_side(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_empty(2, 5, 7)
    y[..., :4].copy_(a)
    y[..., 4:].copy_(b)
    return y * 2


def second_first(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(2, 7, 5)
    y[:, 4:7] = b.mT
    y[:, :4] = a.mT
    return y + 1


@pytest.mark.parametrize("function", [side_by_side, second_first])
def test_slices_that_fill_a_buffer(function: Callable[..., Tensor]) -> None:
    module, given = traced(function)
    without_filled_buffers(module)
    module.graph.lint()
    assert aten.cat.default in targets(module) and aten.copy_.default not in targets(module)
    assert torch.equal(module(*given), function(*given))


def with_a_gap(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(2, 5, 8)
    y[..., :4].copy_(a)
    y[..., 5:].copy_(b)
    return y


def overlapping(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(2, 5, 6)
    y[..., :4].copy_(a)
    y[..., 3:].copy_(b)
    return y


def too_short(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(2, 5, 9)
    y[..., :4].copy_(a)
    y[..., 4:7].copy_(b)
    return y


def read_between(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(2, 5, 7)
    y[..., :4].copy_(a)
    early = y.sum()
    y[..., 4:].copy_(b)
    return y + early


def source_changed(a: Tensor, b: Tensor) -> Tensor:
    c = a * 1.0
    y = a.new_zeros(2, 5, 7)
    y[..., :4].copy_(c)
    c.add_(1)
    y[..., 4:].copy_(b)
    return y + c.sum()


def along_two_dimensions(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(2, 5, 4)
    y[:, :2].copy_(a[:, :2])
    y[..., 2:].copy_(a[..., 2:])
    return y


def spread(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(2, 5, 7)
    y[..., :4].copy_(a[:1])
    y[..., 4:].copy_(b)
    return y


def every_second(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(2, 10, 4)
    y[:, 0::2].copy_(a)
    y[:, 1::2].copy_(a)
    return y


LEFT = (
    with_a_gap,
    overlapping,
    too_short,
    read_between,
    source_changed,
    along_two_dimensions,
    spread,
    every_second,
)


@pytest.mark.parametrize("function", LEFT)
def test_other_buffers_stay(function: Callable[..., Tensor]) -> None:
    module, given = traced(function)
    before = targets(module)
    without_filled_buffers(module)
    assert targets(module) == before
    assert torch.equal(module(*given), function(*given))
