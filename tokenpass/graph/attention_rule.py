"""The token rule of fused attention: queries keep their axis, keys and values are summed over.

    y[i] = sum_j softmax_j(q_i k_j / sqrt(d) + m_ij + log s_j) v_j

with `s_j` the size of a merged key. A mask is a side operand in two dimensions. `is_causal` holds
for shortened operands only while queries and keys share one ordered selection; otherwise it is
spelt out by positions. The sizes enter as an additive `[batch, 1, 1, keys]` mask, which keeps the
fused kernel on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from tokenpass.graph.axis import Axis, Dim, Factor, Label, Unalignable, find_axis, is_constant
from tokenpass.graph.call import Call, Operand, Runner
from tokenpass.graph.demand_lattice import Demand
from tokenpass.graph.join import broadcast, broadcast_targets, join_dims
from tokenpass.graph.rule import Blocked, Kind, Rule, block_dims, join_demands
from tokenpass.graph.rules_mixing import recut


@dataclass(frozen=True)
class Attention(Rule):
    """`scaled_dot_product_attention`."""

    kind: ClassVar[Kind] = "reducing"

    def parts(self, call: Call) -> tuple[Operand, Operand, Operand, Operand | None]:
        """Query, key, value and the mask if there is one."""
        return call["query"], call["key"], call["value"], call.get("attn_mask")

    def infer(self, call: Call) -> tuple[Label, ...]:
        rows, _ = self.tokens(call)
        return ((*self.batch(call), rows, call["value"].label[-1]),)

    def tokens(self, call: Call) -> tuple[Dim, Dim]:
        """What queries and keys count, joined with the mask's."""
        query, key, value, mask = self.parts(call)
        seen = ((), (), *mask.label)[-2:] if mask is not None else ((), ())
        rows = join_dims([query.label[-2], seen[0]], call.table)
        return rows, join_dims([key.label[-2], value.label[-2], seen[1]], call.table)

    def batch(self, call: Call) -> Label:
        """The joined leading dimensions; grouped queries keep their own heads."""
        query, key, value, mask = self.parts(call)
        labels = [query.label[:-2], key.label[:-2], value.label[:-2]]
        if call.get("enable_gqa", False):
            labels = [labels[0], *((*label[:-1], ()) for label in labels[1:])]
        if mask is not None:
            labels.append(mask.label[:-2])
        out = broadcast(labels, call.table)
        if call.get("enable_gqa", False) and is_constant(out[-1]):  # keys of other groups differ
            return (*out[:-1], call.fresh_label()[len(out) - 1])
        return out

    def targets(self, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        query, key, value, mask = self.parts(call)
        _, keys = self.tokens(call)
        batch = outs[0][:-2]
        targets = []
        for operand in (query, key, value):
            lead = operand.label[:-2]
            grouped = call.get("enable_gqa", False) and operand is not query
            held = lead[-1:] if grouped else ()
            goal = batch[:-1] if grouped else batch
            start = broadcast_targets([lead[: len(lead) - len(held)]], goal)[0]
            tokens = outs[0][-2] if operand is query else recut(operand.label[-2], keys)
            targets.append((*start, *held, tokens, operand.label[-1]))
        if mask is not None:
            goal = (*batch, outs[0][-2], keys)
            targets.append(broadcast_targets([mask.label], goal)[0])
        return targets

    def summed(self, call: Call) -> list[Blocked]:
        _, key, value, mask = self.parts(call)
        found = block_dims(1, key, [len(key.label) - 2]) + block_dims(
            2, value, [len(value.label) - 2]
        )
        return found + (block_dims(3, mask, [len(mask.label) - 1]) if mask is not None else [])

    def blocked(self, call: Call) -> list[Blocked]:
        return [blocked for at in range(3) for blocked in block_dims(at, call.operands[at], [-1])]

    def execute(self, call: Call, outs: tuple[Label, ...], runner: Runner) -> Any:
        query, key, _, mask = self.parts(call)
        rows, columns = one_factor(query.label[-2]), one_factor(key.label[-2])
        bias = None if mask is None else mask.value
        causal = bool(call.get("is_causal", False))
        row_cut = rows.cut if rows else None
        column_cut = columns.cut if columns else None
        if causal and (row_cut is not column_cut or (row_cut and not row_cut.ordered)):
            bias, causal = causal_mask(call, outs[0][:-2], rows, columns, runner), False
        if column_cut is not None and column_cut.sizes is not None:
            if causal:
                bias, causal = causal_mask(call, outs[0][:-2], rows, columns, runner), False
            goal = (*outs[0][:-2], (), (columns,))
            at = (len(goal) - 1, 0)
            log_sizes = column_cut.log_sizes(query.value.dtype)
            bias = with_log_sizes(bias, column_cut.spread(log_sizes, goal, at, runner.shape))
        return replace(call, bound={**call.bound, "attn_mask": bias, "is_causal": causal}).execute()

    def demand(self, call: Call, axis: Axis, out: Sequence[Demand]) -> list[Demand]:
        joined, query = join_demands(out), call["query"]
        by_rows = (query, call.get("attn_mask")) if find_axis(query.label[:-1], axis) else ()
        return [
            joined
            if operand in by_rows and find_axis(operand.label[:-1], axis)
            else joined.read_whole()
            for operand in call.operands
        ]


def one_factor(dim: tuple[Factor, ...]) -> Factor | None:
    """The factor of a token dimension; None if it counts a single token."""
    if len(dim) > 1:
        raise Unalignable("attention over a dimension of several factors")
    return dim[0] if dim else None


def causal_mask(
    call: Call, lead: Label, rows: Factor | None, columns: Factor | None, runner: Runner
) -> Any:
    """`[.., queries, keys]` boolean: the key's position is not after the query's."""
    device, at = call["query"].value.device, len(lead)
    row = positions(rows, (*lead, (rows,) if rows else (), ()), at, device, runner)
    column = positions(columns, (*lead, (), (columns,) if columns else ()), at + 1, device, runner)
    return row >= column


def positions(
    factor: Factor | None, label: Label, dim: int, device: torch.device, runner: Runner
) -> torch.Tensor:
    """Full-length positions of the tokens left, shaped to broadcast against the label."""
    if factor is not None and factor.cut is not None:
        return factor.cut.spread(factor.cut.position, label, (dim, 0), runner.shape)
    size = 1 if factor is None else runner.shape(((factor,),))[0]
    shape = [size if at == dim else 1 for at in range(len(label))]
    return torch.arange(size, device=device).reshape(shape)


def with_log_sizes(bias: torch.Tensor | None, log_sizes: torch.Tensor) -> torch.Tensor:
    """The mask plus log sizes; hidden keys of a boolean mask become -inf."""
    if bias is None:
        return log_sizes
    if bias.dtype == torch.bool:
        return torch.where(bias, log_sizes, float("-inf"))
    return bias + log_sizes
