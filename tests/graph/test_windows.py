"""Attention within windows is told from attention over all tokens, however they are laid out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tokenpass.graph.labels import Labels
from tokenpass.graph.view import analyse
from tokenpass.graph.windows import windowed_attention

X = torch.randn(2, 24, 6)


def attend(x):
    return F.scaled_dot_product_attention(x, x, x)


def everywhere(x):
    return attend(x)


def windows(x):
    return attend(x.view(2 * 4, 6, 6)).view(2, 24, 6)


def strided_windows(x):
    """Every sixth token together."""
    apart = x.view(2, 4, 6, 6).transpose(1, 2).reshape(12, 4, 6)
    return attend(apart).view(2, 6, 4, 6).transpose(1, 2).reshape(2, 24, 6)


def windows_of_a_picture(x):
    rows = x.view(2, 4, 6, 6).view(2, 2, 2, 3, 2, 6).permute(0, 1, 3, 2, 4, 5)
    mixed = attend(rows.reshape(-1, 4, 6)).view(2, 2, 3, 2, 2, 6)
    return mixed.permute(0, 1, 3, 2, 4, 5).reshape(2, 24, 6)


def written_windows(x):
    parts = x.view(8, 6, 6)
    return ((parts @ parts.transpose(1, 2)).softmax(-1) @ parts).view(2, 24, 6)


def pairs_averaged(x):
    """Groups that were summed are no windows."""
    return attend(x.view(2, 12, 2, 6).mean(2))


def samples_joined(x):
    """A norm over samples and tokens together, which come apart again."""
    return attend(F.batch_norm(x.flatten(0, 1), torch.zeros(6), torch.ones(6)).view(2, 24, 6) + x)


WINDOWED = {
    everywhere: False,
    windows: True,
    strided_windows: True,
    windows_of_a_picture: True,
    written_windows: True,
    pairs_averaged: False,
    samples_joined: False,
}


@pytest.mark.parametrize("function", WINDOWED, ids=lambda f: f.__name__)
def test_windows_are_recognised(trace, function):
    graph = trace(function, X).graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    assert bool(windowed_attention(graph, Labels(graph), inputs)) == WINDOWED[function]


@pytest.mark.parametrize("function", [windows, strided_windows, windows_of_a_picture])
def test_a_model_of_windows_says_so(trace, function):
    module = trace(function, X)
    (source,) = (node for node in module.graph.nodes if node.op == "placeholder")
    view = analyse(module, [source])
    assert view.streams == () and [r.code for r in view.rejections] == ["window_partition"]
