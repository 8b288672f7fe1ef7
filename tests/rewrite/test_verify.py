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


def test_the_same_outputs_pass() -> None:
    verify_rewrite(traced(whole), traced(lambda x: (x + x, 3)))


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
    before = traced(whole)
    verify_rewrite(before, traced(lambda x: (x[:1], 3)), frozenset(output_nodes(before)[:1]))


def test_a_malformed_graph_is_refused() -> None:
    after = traced(whole)
    nodes = list(after.graph.nodes)
    nodes[1].append(nodes[0])  # used before it is defined
    with pytest.raises(InternalError, match="malformed"):
        verify_rewrite(traced(whole), after)
