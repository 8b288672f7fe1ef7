"""Numbers that a graph's own constants decide, and values that they do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Graph

from tests.models.harness import capture_calls
from tokenpass.graph.constants import constant_number
from tokenpass.tracing import fake_value


def graph_of(function) -> Graph:
    (found,) = capture_calls(lambda x: function(x), [{"x": torch.randn(3, 4)}])
    return found.view.module.graph


def numbers(function) -> list[float]:
    found = [constant_number(node) for node in graph_of(function).nodes]
    return [one for one in found if one is not None]


def test_a_chain_of_constants_is_its_number() -> None:
    def quantile(x: Tensor) -> Tensor:
        share = torch.tensor(0.95)
        return x * (torch.erfinv(2 * share - 1) * math.sqrt(2))

    found = numbers(quantile)
    expected = torch.distributions.Normal(0, 1).icdf(torch.tensor(0.95))
    assert math.isclose(found[-1], float(expected), rel_tol=1e-6)


def test_data_draws_and_wide_values_are_no_numbers() -> None:
    assert not numbers(lambda x: x + x.mean())
    assert not numbers(lambda x: x * torch.rand(()))
    found = numbers(lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert not found
    assert not numbers(lambda x: x + torch.tensor(float("nan")))


def test_what_is_written_to_is_no_constant() -> None:
    def counted(x: Tensor) -> Tensor:
        total = torch.tensor(1.0)
        total.add_(x.sum())
        return x * total

    graph = graph_of(counted)
    scaled = next(n for n in reversed(graph.nodes) if n.op == "call_function")
    (factor,) = (n for n in scaled.all_input_nodes if fake_value(n).dim() == 0)
    assert constant_number(factor) is None
