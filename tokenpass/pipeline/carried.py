"""What a plan's graph is given by earlier calls on its cache, and keeps for later ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config
from tokenpass.graph.view import handed_on
from tokenpass.lower.carried import CarryingRun, Places
from tokenpass.passes.base import LossyContext, Observation
from tokenpass.pipeline.choices import Choices, fixed_share, in_scope
from tokenpass.pipeline.planned import Planned
from tokenpass.pipeline.regions import context_of
from tokenpass.rewrite.carrying import given_nodes, with_carried
from tokenpass.rewrite.replacing import Given
from tokenpass.tracing import output_nodes, placeholders


def told(planned: Planned, kept: Sequence[Observation]) -> Planned:
    """A plan that says what its graph keeps for later calls."""
    if not kept:
        return planned
    policies = ", ".join(dict.fromkeys(one.policy for one in kept))
    note = f"keeps what {len(kept)} projections read, for {policies} in later calls on its cache"
    plan = replace(planned.plan, notes=(*planned.plan.notes, note))
    return replace(planned, plan=plan)


@dataclass(frozen=True, eq=False)
class CarryingGraph:
    """A plan's graph with its carried inputs and outputs, to be lowered, and how to call it."""

    module: GraphModule
    given: tuple[Given, ...]
    run: Callable[[Callable[..., Any]], CarryingRun]

    @property
    def examples(self) -> list[Tensor]:
        """Its carried inputs where nothing was kept."""
        return [one.example for one in self.given]


def carrying(
    planned: Planned, captured: Captured, kept: Sequence[Observation]
) -> CarryingGraph | None:
    """The graph as it is lowered where something goes from call to call; None where nothing does.

    Nothing does while gradients are recorded.
    """
    module = planned.module or planned.view.module
    if captured.training or not (kept or given_nodes(module)):
        return None
    places = places_of(planned, captured)
    made, given = with_carried(module, [(one.node, one.seen) for one in kept])
    names = tuple((one.policy, one.site) for one in kept)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    _, spec = tree_flatten(output.args[0], is_leaf=lambda leaf: isinstance(leaf, Node))
    structure = partial(tree_unflatten, treespec=spec)
    return CarryingGraph(
        made, given, lambda lowered: CarryingRun(lowered, structure, given, names, places)
    )


def places_of(planned: Planned, captured: Captured) -> Places:
    """Where a graph has its caches."""
    view, inputs = planned.view, placeholders(planned.view.module)
    caches = view.caches | handed_on(view.module, captured.data_inputs)
    handed_out = tuple(at for at, node in enumerate(output_nodes(view.module)) if node in caches)
    written = tuple(at for at, node in enumerate(inputs) if node in view.written)
    data = {node.name for node in captured.data_inputs}
    read = tuple(at for at, node in enumerate(inputs) if node.name in data or at in written)
    return Places(handed_out, written, read)


def kept_of(planned: Planned, captured: Captured, config: Config) -> tuple[Observation, ...]:
    """What passes want kept with a prompt's cache, where a later step may leave something out."""
    places = places_of(planned, captured)
    if captured.training or not (places.handed_out or places.written):
        return ()
    module = planned.module or planned.view.module
    choices = Choices(planned, captured, config)
    below = config.budget is not None and config.budget < 1.0
    found: list[Observation] = []
    for item, spec in choices.specs:
        if not (below or config.max_error is not None or fixed_share(spec) is not None):
            continue
        told = LossyContext(spec.policy, config.seed)
        context = context_of(module, captured, config)
        seen = item.observations(context, told)
        found += [one for one in seen if in_scope(spec, one.site, choices.prefixes)]
    return tuple(found)
