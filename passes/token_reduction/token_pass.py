"""What the two lossy token passes share: where they may act, and what makes a site unsound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis_rules import mutates
from tokenpass.graph.demand_lattice import Extent
from tokenpass.graph.sites import Site, Stream
from tokenpass.graph.view import View
from tokenpass.passes.base import Candidate, Found, PassContext, Reason
from tokenpass.passes.token_reduction.signals import looks_at_data
from tokenpass.passes.token_reduction.span import read_inside, tokens_apart
from tokenpass.tracing import fake_value, source_line


def token_candidates(
    view: View,
    context: PassContext,
    name: str,
    role: str,
    policy: Callable[..., Any],
    lowest: float,
) -> Found:
    """Candidates of a token pass at all sites of one role; every other site has a reason."""
    found: list[Candidate] = []
    rejections: list[Rejection] = []
    for stream in view.streams:
        layers = [region.layer for region in stream.regions]
        for site in stream.sites:
            if site.role != role:
                continue
            reason = unsound(view, stream, site, policy, context)
            if reason is not None:
                rejections.append(reason)
                continue
            depth = layers.index(site.layer) / len(layers)
            apart = tokens_apart(stream, context.span)
            keep = apart + max(1, read_inside(stream, context.span))
            found.append(
                Candidate(
                    name,
                    policy.__name__,
                    site,
                    stream,
                    depth,
                    lowest,
                    keep,
                    span=context.span,
                    apart=apart,
                )
            )
    return Found(tuple(found), tuple(rejections))


def unsound(
    view: View, stream: Stream, site: Site, policy: Callable[..., Any], context: PassContext
) -> Rejection | None:
    """Why tokens must not leave at a site; None if they may."""
    checks = (written_later, caches_later, hidden_future, nothing_behind, too_short)
    for check in checks:
        reason = check(view, stream, site, policy, context)
        if reason is not None:
            code, because, hint = reason
            return Rejection(code, site.name, because, hint, source_line(site.node))
    return None


def written_later(
    view: View, stream: Stream, site: Site, policy: Any, context: PassContext
) -> Reason:
    """A write through an alias after the site would act on a copy."""
    later = view.downstream(site.node) | {site.node}
    for node, writer in view.written.items():
        if node in later and not harmless_write(writer):
            line = source_line(writer) or writer.name
            return "mutated_alias", f"{node.name} is written to in place by {line}", ""
    return None


def harmless_write(writer: Node) -> bool:
    """Writes that change no data."""
    return not mutates(writer.target)  # type: ignore[arg-type]


def caches_later(
    view: View, stream: Stream, site: Site, policy: Any, context: PassContext
) -> Reason:
    """Keys and values that are handed out keep their length unless the user allows otherwise."""
    later = view.downstream(site.node)
    if not any(cache in later for cache in view.caches):
        return None
    if not context.shorter_cache:
        because = "keys and values behind it are handed out as a cache"
        return "cache_keeps_length", because, "set shorter_cache: true to let caches be shorter"
    for mask, _ in site.region.masks:
        if reads_data(mask):
            because = "the attention has a padding mask, whose length the next step would not meet"
            return "padded_cache", because, "leave the mask out where nothing is padded"
    return None


def reads_data(mask: Node) -> bool:
    """Whether a mask is computed from a tensor input, and not from positions alone."""
    seen, queue = {mask}, [mask]
    while queue:
        node = queue.pop()
        if node.op == "placeholder" and isinstance(fake_value(node), torch.Tensor):
            return True
        queue += [source for source in node.all_input_nodes if source not in seen]
        seen.update(node.all_input_nodes)
    return False


def hidden_future(
    view: View, stream: Stream, site: Site, policy: Callable[..., Any], context: PassContext
) -> Reason:
    """In a causal stream a choice that looks at data must not reach outputs of earlier tokens."""
    if not any(region.causal for region in stream.regions) or not looks_at_data(policy):
        return None
    demand, size = stream.protected, stream.axis.size
    last = {-1, size - 1} if isinstance(size, int) else {-1}
    at_end = demand.extent is Extent.AT and all(
        isinstance(p.at, Node) or p.at in last for p in demand.positions
    )
    reads_node = any(isinstance(p.at, Node) for p in demand.positions)
    if at_end and not reads_node:
        return None
    because = "the stream is causal (or may be) and earlier positions are read as well"
    return "causal_leak", because, "policies that choose by position alone can be used"


def nothing_behind(
    view: View, stream: Stream, site: Site, policy: Any, context: PassContext
) -> Reason:
    """Behind the last attention all tokens apart from the outputs' are dead already."""
    last = stream.regions[-1]
    if site.layer == last.layer and stream.protected.extent <= Extent.AT:
        return "nothing_behind", "only positions that the outputs read are left behind it", ""
    return None


def too_short(view: View, stream: Stream, site: Site, policy: Any, context: PassContext) -> Reason:
    """The span must lie among the stream's tokens; a guard keeps a dynamic length that long."""
    if not context.span or stream.axis.size >= context.span[-1][1]:
        return None
    because = f"the span {list(context.span[-1])} ends behind the {stream.axis.size} tokens there"
    return "span_outside", because, "give a span inside the prompt"
