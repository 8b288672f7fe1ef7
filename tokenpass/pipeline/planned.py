"""A plan with the graph that it gives, priced as itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch.fx import GraphModule

from tokenpass.capture.dynamo import Captured
from tokenpass.codegen import TEMPLATES
from tokenpass.config import Config
from tokenpass.cost.device import DeviceProfile
from tokenpass.cost.roofline import GraphCost, graph_cost
from tokenpass.edits import Edit, Plan
from tokenpass.graph.view import View
from tokenpass.ops import OPERATORS, Operator
from tokenpass.ops.cost_record import OpCost
from tokenpass.options import lossy_passes
from tokenpass.reference.facts import MaskFacts
from tokenpass.rewrite.rewriter import Actions, Rewritten, rewrite

KERNEL_CALLS = 11
"""Calls into torch that starting a generated kernel takes as long as.

17 to 34 us on an idle machine with operands of 16 entries, where torch's own take 1 to 2.
"""

NOT_PAYING = (
    "no lossy plan is predicted to pay on this device: what edits cost outweighs their gain"
)

NO_CHANGE = 1e-9
"""Costs that differ by no more than this share are equal."""


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, the graph that it gives (None: nothing is edited), and what both cost.

    `packed_bytes`: what second copies of weights take. `masks`: which entries of a
    projection's input a lossy replacement keeps, by the projection's name in the dense graph.
    """

    view: View
    plan: Plan
    rewritten: Rewritten | None
    dense: GraphCost
    edited: GraphCost | None
    profile: DeviceProfile
    sizes: Mapping[sympy.Symbol, int]
    packed_bytes: int = 0
    masks: Mapping[str, MaskFacts] = field(default_factory=dict)

    @property
    def module(self) -> GraphModule | None:
        """The edited graph."""
        return None if self.rewritten is None else self.rewritten.module

    @property
    def exact(self) -> bool:
        """Whether no edit can lose anything."""
        lossy = lossy_passes()
        return not any(edit.pass_name in lossy for edit in self.plan.edits)


def op_costs(device: str, profile: DeviceProfile) -> dict[Any, Callable[..., Any]]:
    """Cost rules of our own operators, as the cost model calls them (result first).

    With a kernel for the type of device an operator is one call, which its way through Python
    makes as dear as several of torch's own: as many as the profile has measured, else
    `KERNEL_CALLS`.
    """
    calls = KERNEL_CALLS
    if profile.kernel_launch_us is not None and profile.call_us > 0:
        calls = max(1, round(profile.kernel_launch_us / profile.call_us))
    kernels = {template.operator for template in TEMPLATES if template.device == device}

    def rule(operator: Operator) -> Callable[..., Any]:
        def cost(out: Any, *args: Any, **kwargs: Any) -> OpCost:
            found = operator.cost(*args, **kwargs)
            return replace(found, calls=calls) if operator.name in kernels else found

        return cost

    return {operator.overload: rule(operator) for operator in OPERATORS}


def size_hints(captured: Captured) -> dict[sympy.Symbol, int]:
    """The example call's value of every dynamic size."""
    found: dict[sympy.Symbol, int] = {}
    sizes: list[Any] = list(captured.fakes)
    for fake in captured.fakes:
        if isinstance(fake, torch.Tensor):
            sizes += [*fake.shape, *fake.stride()]
    for size in sizes:
        if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
            found[size.node.expr] = size.node.hint
    return found


def device_of(captured: Captured) -> torch.device:
    """The device that the graph runs on: that of its first tensor that is not on the CPU."""
    devices = [f.device for f in captured.fakes if isinstance(f, torch.Tensor)]
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


def carried_out(
    unedited: Planned,
    captured: Captured,
    actions: Actions,
    edits: tuple[Edit, ...],
    notes: tuple[str, ...],
    config: Config,
) -> Planned:
    """The graph that actions give, priced as itself."""
    made = rewrite(unedited.view, actions, captured.fakes, captured.mode)
    rejections = (*unedited.plan.rejections, *made.barriers)
    edited = graph_cost(made.module, op_costs(device_of(captured).type, unedited.profile))
    cost = edited.evaluate(unedited.sizes, unedited.profile, config.objective)
    plan = replace(
        unedited.plan, edits=edits, planned_cost=cost, notes=notes, rejections=rejections
    )
    return replace(unedited, plan=plan, rewritten=made, edited=edited)


def declined(exact: Planned, budget: float | None) -> Planned:
    """The exact plan, saying that nothing lossy would have paid, unless it meets the budget."""
    if budget is not None and exact.plan.share <= budget:
        return exact
    notes = tuple(dict.fromkeys((*exact.plan.notes, NOT_PAYING)))
    return replace(exact, plan=replace(exact.plan, notes=notes))
