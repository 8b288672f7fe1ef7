"""The report of a plan: each attention layer's tokens and costs."""

from __future__ import annotations

from collections import Counter

import sympy

from tokenpass.cost.device import DeviceProfile
from tokenpass.cost.roofline import GraphCost
from tokenpass.graph.layers import costs_by_layer, layer_prefixes, under
from tokenpass.graph.reading import reads
from tokenpass.graph.view import View
from tokenpass.pipeline.planned import Planned
from tokenpass.plan.levels import TOKENS
from tokenpass.plan.plan_file import plan_to_yaml
from tokenpass.report import GraphReport, LayerRow


def report_of(planned: Planned, seconds: float) -> GraphReport:
    """The record of a graph; `seconds` is what planning took."""
    rows, outside = layer_rows(planned)
    return GraphReport(
        "edited" if planned.module is not None else "dense",
        planned.plan,
        planned.profile.name,
        rows,
        *outside,
        unknown=planned.dense.unknown,
        seconds=seconds,
        plan_yaml=plan_to_yaml(planned.plan),
        exact=planned.exact,
        found=recognised(planned.view),
        packed_bytes=planned.packed_bytes,
    )


def recognised(view: View) -> tuple[str, ...]:
    """What analysis recognised: how many regions of each kind, and what is read of each stream."""
    mlps = Counter(f"{m.kind} {m.activation or 'activation of its own'}" for m in view.mlps)
    sets = Counter(rows.refused is None for rows in view.labels.row_sets)
    counts = {
        "attention": len(view.regions),
        **{f"MLP ({kind})": count for kind, count in mlps.items()},
        "rows sorted and put back": sets[True],
        "rows sorted": sets[False],
    }
    named = [f"{count} x {name}" for name, count in counts.items() if count]
    return (*named, *(f"reads {how}" for s in view.streams for how in reads(s, view.labels)))


def layer_rows(planned: Planned) -> tuple[tuple[LayerRow, ...], tuple[float, float]]:
    """Each attention layer's tokens and costs, and the costs outside all layers."""
    regions = planned.view.regions
    prefixes = layer_prefixes(regions)
    dense_costs, edited_costs = (
        costs_by_node(cost, planned) for cost in (planned.dense, planned.edited or planned.dense)
    )
    together = max if planned.plan.objective == "memory" else sum
    dense, dense_outside = costs_by_layer(
        planned.view.module.graph, dense_costs, prefixes, together
    )
    graph = (planned.module or planned.view.module).graph
    edited, outside = costs_by_layer(graph, edited_costs, prefixes, together)
    counts = token_counts(planned)
    rows = tuple(
        LayerRow(
            region.layer,
            prefixes[at] or region.node.name,
            counts[at][0],
            counts[at][1],
            dense[at],
            edited[at],
            tuple(e for e in planned.plan.edits if prefixes[at] and within(e.site, prefixes[at])),
        )
        for at, region in enumerate(regions)
    )
    return rows, (dense_outside, outside)


def costs_by_node(cost: GraphCost, planned: Planned) -> dict[str, float]:
    """Each node's cost in the objective's unit; of memory, what is held while its kernel runs."""
    sizes = dict(planned.sizes)
    if planned.plan.objective == "flops":
        return flops_by_node(cost, sizes, planned.profile)
    if planned.plan.objective == "memory":
        return cost.memory.while_running(cost.point(sizes))
    return cost.per_node(sizes, planned.profile)


def flops_by_node(
    cost: GraphCost, sizes: dict[sympy.Symbol, int], profile: DeviceProfile
) -> dict[str, float]:
    """Arithmetic of each node."""
    totals: dict[str, float] = {}
    for group in cost.per_group(sizes, profile):
        totals[group.names[0]] = totals.get(group.names[0], 0.0) + group.flops
    return totals


def within(site: str, prefix: str) -> bool:
    """Whether a site lies in a layer's modules."""
    return under(site.rsplit(":", 1)[0], prefix)


def token_counts(planned: Planned) -> list[tuple[str, str]]:
    """Tokens coming into and leaving every layer, as text."""
    sites = {site.name: site for site in planned.view.sites}
    now: dict[int, str] = {}
    behind: dict[int, str] = {}
    for edit in planned.plan.edits:
        if edit.site in sites:
            behind[id(sites[edit.site].region)] = edit.level
        elif edit.pass_name == "dead_tokens":
            for region in planned.view.regions:
                if within(edit.site, layer_prefixes(planned.view.regions)[region.layer]):
                    behind[id(region)] = edit.level
    counts = []
    for region in planned.view.regions:
        axis = id(region.query_axis)
        size = region.query_axis.size
        incoming = now.get(axis, str(size) if isinstance(size, int) else str(TOKENS))
        outgoing = behind.get(id(region), incoming)
        now[axis] = outgoing
        counts.append((incoming, outgoing))
    return counts
