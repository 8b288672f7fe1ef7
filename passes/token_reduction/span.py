"""Spans: the positions of the full sequence that an edit may take tokens from."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from tokenpass.graph.sites import Stream
from tokenpass.option_values import Spans
from tokenpass.rewrite.rewriter import hinted


def tokens_apart(stream: Stream, span: Spans) -> int:
    """Tokens of the example call outside a span; 0 where there is no span."""
    if not span:
        return 0
    return int(hinted(stream.axis.size)) - covered(span)


def covered(span: Spans) -> int:
    """Tokens inside a span."""
    return sum(stop - start for start, stop in span)


def read_inside(stream: Stream, span: Spans) -> int:
    """Positions read alone that may lie in a span, at whatever length."""
    size, found = stream.axis.size, 0
    for position in stream.protected.positions:
        at = position.at
        known = isinstance(at, int) and (at >= 0 or isinstance(size, int))
        if not span or isinstance(at, Node) or not known:
            found += 1
            continue
        place = at if at >= 0 else int(size) + at
        found += any(start <= place < stop for start, stop in span)
    return found


def outside(span: Spans, tokens: Any, device: torch.device) -> torch.Tensor:
    """`[1, positions]`: all of `tokens` positions that a span leaves out, in order."""
    edges = [0, *(at for pair in span for at in pair), tokens]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return torch.cat([torch.arange(a, b, device=device) for a, b in pairs])[None]
