"""Exact replacements of regions, on the graph that the token edits gave, where they pay.

Each kind of region (equal sizes, equal operator) is weighed by itself: what its calls cost against
what they replace, from the cost model. Second copies of weights stay under `pack_memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import GraphModule, Node

from tokenpass.capture.dynamo import Captured
from tokenpass.codegen import TEMPLATES
from tokenpass.config import Config
from tokenpass.cost.roofline import GraphCost, graph_cost
from tokenpass.edits import Edit, Rejection
from tokenpass.graph.aliases import written_nodes
from tokenpass.options import all_passes
from tokenpass.passes.base import RegionContext, RegionPass
from tokenpass.pipeline.planned import NO_CHANGE, Planned, device_of, op_costs
from tokenpass.rewrite.replacing import Replacement, replaced
from tokenpass.rewrite.rewriter import Rewritten
from tokenpass.rewrite.verify import verify_rewrite
from tokenpass.statistics.finding import find_calibration
from tokenpass.tracing import placeholders, source_line


def with_regions(planned: Planned, captured: Captured, config: Config) -> Planned:
    """A plan with the exact replacements that pay."""
    context = region_context(planned.module or planned.view.module, captured, config)
    found, rejections = find_replacements(context, captured)
    paid = paying(planned, captured, config, context.module, found)
    chosen, more = affordable(paid, captured, config)
    return carry_out_regions(planned, captured, config, chosen, (*rejections, *more))


def carry_out_regions(
    planned: Planned,
    captured: Captured,
    config: Config,
    chosen: Sequence[Named],
    rejections: tuple[Rejection, ...],
) -> Planned:
    """A plan with chosen replacements, priced as the graph that they give."""
    known = (*planned.plan.rejections, *rejections)
    if not chosen:
        return replace(planned, plan=replace(planned.plan, rejections=known))
    module = planned.module or planned.view.module
    made = replaced(module, [one for _, one in chosen], len(planned.plan.edits))
    short = planned.view.caches if config.shorter_cache else frozenset()
    verify_rewrite(planned.view.module, made, short)
    edited = graph_cost(made, op_costs(device_of(captured).type))
    edits = tuple(Edit(name, one.site, one.policy, one.level) for name, one in chosen)
    cost = edited.evaluate(planned.sizes, planned.profile, config.objective)
    plan = replace(
        planned.plan,
        edits=(*planned.plan.edits, *edits),
        planned_cost=cost + copies(config, [one for _, one in chosen]),
        rejections=known,
    )
    before = planned.rewritten or Rewritten(module)
    return replace(
        planned,
        plan=plan,
        rewritten=replace(before, module=made),
        edited=edited,
        packed_bytes=sum(one.packed_bytes for _, one in chosen),
    )


Named = tuple[str, Replacement]
"""A replacement with the name of its pass."""


def region_context(module: GraphModule, captured: Captured, config: Config) -> RegionContext:
    """What region passes are told of a graph: the dense one, or what token edits made of it."""
    examples = {node.name: value for node, value in captured.examples.items()}
    static = static_inputs(module, captured)
    return RegionContext(
        module,
        static,
        written_nodes(module.graph),
        {node: examples[node.name] for node in static},
        find_calibration(config),
    )


def in_graph_order(context: RegionContext, chosen: Sequence[Named]) -> list[Named]:
    """Replacements in the order of what they replace: later ones read what earlier ones gave."""
    order = {node: at for at, node in enumerate(context.module.graph.nodes)}
    return sorted(chosen, key=lambda one: order[one[1].node])


def find_replacements(
    context: RegionContext, captured: Captured
) -> tuple[list[Named], tuple[Rejection, ...]]:
    """What all region passes could replace; the first pass that wants a value has it."""
    passes = [item for item in all_passes() if isinstance(item, RegionPass)]
    found: list[Named] = []
    rejections: list[Rejection] = []
    taken: set[Node] = set()
    for item in passes:
        replacements, refused = item.replacements(context)
        rejections += refused
        for one in replacements:
            reason = unserved(one, captured)
            if reason is not None:
                rejections.append(reason)
            elif one.node not in taken:
                taken.add(one.node)
                found.append((item.name, one))
    return found, tuple(rejections)


def unserved(one: Replacement, captured: Captured) -> Rejection | None:
    """Why the operators of a replacement would not do here; None if they do.

    Their references read whole weights, and gain nothing.
    """
    line = source_line(one.origin)
    if captured.training:
        because = "the graph records gradients, which the operators do not have"
        return Rejection("needs_gradients", one.site, because, "torch.no_grad()", line)
    device = device_of(captured).type
    served = {template.operator for template in TEMPLATES if template.device == device}
    missing = [name for name in one.operators if name not in served]
    if missing:
        because = f"no kernel of {missing[0]} for {device}"
        return Rejection("no_kernel_template", one.site, because, "", line)
    return None


def static_inputs(module: GraphModule, captured: Captured) -> frozenset[Node]:
    """Placeholders that are parameters or buffers."""
    data = {node.name for node in captured.data_inputs}
    pairs = zip(placeholders(captured.module), placeholders(module), strict=True)
    return frozenset(
        new
        for old, new in pairs
        if old.name not in data and isinstance(old.meta.get("val"), torch.Tensor)
    )


def paying(
    planned: Planned,
    captured: Captured,
    config: Config,
    module: GraphModule,
    found: Sequence[Named],
) -> list[Named]:
    """The replacements of every kind that are predicted to cost less than what they replace."""
    kinds: dict[tuple[str, str, str], list[Named]] = {}
    for name, one in found:
        kinds.setdefault((name, one.policy, one.level), []).append((name, one))
    costs = op_costs(device_of(captured).type)

    def cost(graph: GraphCost) -> float:
        return graph.evaluate(planned.sizes, planned.profile, config.objective)

    before = cost(graph_cost(module, costs)) if kinds else 0.0
    kept: list[Named] = []
    for same in kinds.values():
        mine = [one for _, one in same]
        after = cost(graph_cost(replaced(module, mine, 0), costs)) + copies(config, mine)
        if after < before * (1 - NO_CHANGE):
            kept += same
    return [one for one in found if one in kept]


def copies(config: Config, chosen: Sequence[Replacement]) -> float:
    """What second copies of weights add to a plan's cost: bytes, where those are counted."""
    return float(sum(one.packed_bytes for one in chosen)) if config.objective == "memory" else 0.0


def weight_bytes(captured: Captured) -> int:
    """What the graph's parameters and buffers take."""
    return sum(
        value.numel() * value.element_size()
        for node, value in captured.examples.items()
        if node not in captured.data_inputs and isinstance(value, torch.Tensor)
    )


def affordable(
    found: Sequence[Named], captured: Captured, config: Config
) -> tuple[list[Named], tuple[Rejection, ...]]:
    """The replacements, first come first served, whose copies of weights fit `pack_memory`."""
    weights = weight_bytes(captured)
    left, kept, refused = config.pack_memory * weights, list[Named](), list[Rejection]()
    for name, one in found:
        if one.packed_bytes > left:
            because = (
                f"a second copy of the weight takes {one.packed_bytes / 1e6:.1f} MB, and "
                f"pack_memory {config.pack_memory:g} of {weights / 1e6:.1f} MB leaves "
                f"{left / 1e6:.1f}"
            )
            refused.append(Rejection("pack_memory", one.site, because, "raise pack_memory"))
            continue
        left -= one.packed_bytes
        kept.append((name, one))
    return kept, tuple(refused)
