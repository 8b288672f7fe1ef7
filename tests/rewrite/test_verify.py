"""Valid in, valid out: what a rewritten graph must have kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from tokenpass.errors import InternalError
from tokenpass.rewrite.verify import verify_rewrite
from tokenpass.tracing import output_nodes


def traced(function: Any) -> GraphModule:
    return make_fx(function)(torch.ones(2, 3))


def whole(x: Tensor) -> tuple[Tensor, int]:
    return x * 2, 3


def dynamic(function: Any) -> GraphModule:
    return make_fx(function, tracing_mode="symbolic")(torch.ones(5, 3))


def test_the_same_outputs_pass() -> None:
    """Whatever computes them."""
    before, after = traced(whole), traced(lambda x: (x + x, 3))
    verify_rewrite(before, after)
    assert [n.target for n in before.graph.nodes] != [n.target for n in after.graph.nodes]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x[:1] * 2, 3), r"output 0 \(mul\) is .*\[1, 3\].* instead of .*\[2, 3\]"),
        (lambda x: ((x * 2).half(), 3), "output 0 .* is torch.float16"),
        (lambda x: (x * 2,), "1 outputs instead of 2"),
        (lambda x: (x * 2, 4), "output 1 .* is integer 4 instead of integer 3"),
    ],
)
def test_other_outputs_do_not(function: Any, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify_rewrite(traced(whole), traced(function))


def test_outputs_that_may_shrink() -> None:
    before, shorter = traced(whole), traced(lambda x: (x[:1], 3))
    verify_rewrite(before, shorter, frozenset(output_nodes(before)[:1]))
    with pytest.raises(InternalError, match="output 0"):
        verify_rewrite(before, shorter)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x * 2, 5), r"output 1 .* is integer 5 instead of integer 5 \(dynamic\)"),
        (lambda x: (x.new_ones(5, 3), x.shape[0]), r"output 0 .* \[5, 3\] .* \[5 \(dynamic\), "),
    ],
)
def test_a_dynamic_size_stays_dynamic(function: Any, message: str) -> None:
    before = dynamic(lambda x: (x * 2, x.shape[0]))
    verify_rewrite(before, dynamic(lambda x: (x + x, x.shape[0])))
    with pytest.raises(InternalError, match=message):
        verify_rewrite(before, dynamic(function))


def test_a_malformed_graph_is_refused() -> None:
    after = traced(whole)
    nodes = list(after.graph.nodes)
    nodes[1].append(nodes[0])  # used before it is defined
    with pytest.raises(InternalError, match="malformed"):
        verify_rewrite(traced(whole), after)
