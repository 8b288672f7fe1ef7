"""Rules of collectives: every rank runs the same graph and shortens a stream in the same way.

Sums over ranks treat tokens apart. A gather lays the ranks' first dimensions end to end; where
tokens stand there, each rank has tokens of its own, which are restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenpass.graph.axis import Axis, Label, find_axis
from tokenpass.graph.call import Call, is_one
from tokenpass.graph.demand_lattice import Demand
from tokenpass.graph.rule import Blocked, Rule, block_dims, join_demands
from tokenpass.graph.rules_apart import Pointwise
from tokenpass.graph.rules_position import Along


@dataclass(frozen=True)
class AllRanks(Rule):
    """`out[(r, i), ..] = x_r[i, ..]`."""

    def infer(self, call: Call) -> tuple[Label, ...]:
        label, ranks = call.operands[0].label, call["group_size"]
        lead = () if is_one(ranks) else (call.fresh("ranks", ranks),)
        return (((*lead, *label[0]), *label[1:]),)

    def restored_first(self, call: Call) -> list[Blocked]:
        # tokens there are each rank's own, and may have been chosen by each rank alone
        return [*super().restored_first(call), *block_dims(0, call.operands[0], [0])]

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        place, joined = find_axis(call.operands[0].label, axis), join_demands(out)
        return [joined.read_whole() if place is None or place[0] == 0 else joined]


def first_dim(call: Call) -> list[int]:
    """The first dimension."""
    return [0]


def rules_of_collectives() -> Mapping[Any, Rule]:
    """One line for each collective; none where torch was built without them."""
    if not torch.distributed.is_available():
        return {}
    plain, with_gradients = torch.ops._c10d_functional, torch.ops._c10d_functional_autograd
    return {
        plain.all_reduce.default: Pointwise(),
        plain.broadcast.default: Pointwise(),
        plain.wait_tensor.default: Pointwise(linear=True),
        plain.all_gather_into_tensor.default: AllRanks(),
        plain.reduce_scatter_tensor.default: Along(first_dim),
        with_gradients.all_gather_into_tensor.default: AllRanks(),
        with_gradients.reduce_scatter_tensor.default: Along(first_dim),
    }
