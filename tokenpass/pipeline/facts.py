"""What a plan's reference is told of a graph: names and numbers of the analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from tokenpass.capture.dynamo import Captured
from tokenpass.errors import InternalError
from tokenpass.graph.projections import gated, projection_region, projections
from tokenpass.graph.regions import AttentionRegion
from tokenpass.graph.sites import Site, Stream, batch_place
from tokenpass.graph.view import View
from tokenpass.options import all_passes
from tokenpass.passes.base import EntryMask, LossyPass
from tokenpass.pipeline.planned import Planned
from tokenpass.pipeline.regions import static_inputs
from tokenpass.reference.facts import (
    FUSED,
    AttentionFacts,
    GraphFacts,
    MaskFacts,
    ShortFacts,
    SiteFacts,
    StreamFacts,
)
from tokenpass.reference.interpreter import Reference
from tokenpass.rewrite.rewriter import Rewritten, Short


def reference_of(planned: Planned, given: Mapping[str, Tensor] | None = None) -> Reference:
    """The slow interpreter of a plan; `given`: thresholds of one call, by site."""
    plan, facts = planned.plan, facts_of(planned.view, planned.rewritten)
    masks = {
        name: replace(mask, threshold=(given or {}).get(mask.site, mask.threshold))
        for name, mask in planned.masks.items()
    }
    facts = replace(facts, masks=masks)
    tokens = {item.name for item in all_passes() if isinstance(item, LossyPass)}
    edits = [edit for edit in plan.edits if edit.pass_name in tokens]
    return Reference(planned.view.module, edits, facts, plan.seed)


def mask_facts(
    dense: GraphModule, captured: Captured, masks: Mapping[str, EntryMask]
) -> dict[str, MaskFacts]:
    """What the reference is told of masks by site: names of the dense graph."""
    static = static_inputs(dense, captured)
    found: dict[str, MaskFacts] = {}
    for node, site in projections(dense.graph, static).items():
        if site not in masks:
            continue
        mask, region = masks[site], projection_region(node, static)
        region = gated(region, static) if mask.by_gate and region is not None else None
        gate = "" if region is None else str(region.gate)
        inputs = () if region is None else tuple(one.name for one in region.inputs)
        found[node.name] = MaskFacts(mask.threshold, mask.share, gate, inputs, mask.each_row, site)
    return found


def facts_of(view: View, made: Rewritten | None) -> GraphFacts:
    """The names and numbers that the reference is told."""
    attentions = {
        node: fused_facts(node, view)
        for node in view.module.graph.nodes
        if node.op == "call_function" and node.target is FUSED
    }
    attentions |= {r.node: written_facts(r, view) for r in view.regions if r.probabilities}
    streams = tuple(stream_facts(stream, view) for stream in view.streams)
    sites = {
        site.name: site_facts(site, stream, at, attentions[site.region.node])
        for at, stream in enumerate(view.streams)
        for site in stream.sites
    }
    facts = GraphFacts(streams, tuple(attentions.values()), sites)
    if made is None:
        return facts
    whole = frozenset(node.name for node in made.whole)
    short, averaged = short_facts(made.short, view), short_facts(made.averaged, view)
    return replace(facts, short=short, averaged=averaged, whole=whole)


def short_facts(
    values: Mapping[Node, tuple[Short, ...]], view: View
) -> dict[str, tuple[ShortFacts, ...]]:
    """Names, and the numbers of streams."""
    return {
        node.name: tuple(
            ShortFacts(one.dim, at, one.batch_dim)
            for one in dims
            for at, stream in enumerate(view.streams)
            if stream.axis.root is one.axis
        )
        for node, dims in values.items()
    }


def stream_facts(stream: Stream, view: View) -> StreamFacts:
    """One stream."""
    places = {n.name: batch_place(n, stream.axis, view.labels) for n in stream.chain}
    positions = sorted(stream.protected.positions, key=str)
    return StreamFacts(
        any(region.causal for region in stream.regions),
        tuple(p.at.name if isinstance(p.at, Node) else p.at for p in positions),
        {name: place and place[:2] for name, place in places.items()},
    )


def stream_of(node: Node, view: View, dim: int) -> int | None:
    """The stream whose tokens a dimension counts."""
    counted = [factor.axis.root for factor in view.labels[node][dim]]
    return next((at for at, s in enumerate(view.streams) if s.axis.root in counted), None)


def fused_facts(node: Node, view: View) -> AttentionFacts:
    """A call of fused attention."""
    names = ("query", "key", "value", "attn_mask")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    query, key, mask = given["query"], given["key"], given.get("attn_mask")
    return AttentionFacts(
        node.name,
        query.name,
        key.name,
        stream_of(query, view, -2),
        stream_of(key, view, -2),
        scale=given.get("scale"),
        masks=((mask.name, False),) if isinstance(mask, Node) else (),
    )


def written_facts(region: AttentionRegion, view: View) -> AttentionFacts:
    """A hand-written attention."""
    softmax = region.probabilities
    if softmax is None:
        raise InternalError(f"{region.node.name} is no hand-written attention")
    return AttentionFacts(
        region.node.name,
        region.query.name,
        region.key.name,
        stream_of(softmax, view, -2),
        stream_of(softmax, view, -1),
        softmax.name,
        region.key_transposed,
        region.scale,
        tuple((mask.name, hides) for mask, hides in region.masks),
    )


def site_facts(site: Site, stream: Stream, at: int, attention: AttentionFacts) -> SiteFacts:
    """One site; `end` has the same rank among the last layer's values as the site in its own."""
    order = {node: place for place, node in enumerate(site.node.graph.nodes)}
    kind = [node for node in stream.chain if node.target is site.node.target]
    rank = sum(order[site.region.node] < order[n] <= order[site.node] for n in kind)
    behind = [n for n in kind if order[n] > order[stream.regions[-1].node]]
    end = behind[min(rank, len(behind)) - 1].name if behind else ""
    attention = replace(attention, groups=site.region.groups)
    return SiteFacts(site.node.name, at, site.token_dim, site.batch_dim, attention, end)
