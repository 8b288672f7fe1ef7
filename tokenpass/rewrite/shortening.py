"""Shortening operands: values of the stream by the reduction itself, side operands by position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tokenpass.graph.axis import (
    Label,
    Unalignable,
    find_axis,
    is_constant,
    with_cut,
)
from tokenpass.graph.call import Operand
from tokenpass.rewrite.gather import combine, merge, open_factors, take
from tokenpass.rewrite.reduction import Gather, Reduction, Segment, Slice, owned_by
from tokenpass.rewrite.values import Values


class Shortening(Values):
    """Values, and how an operand is brought to the length of its partners."""

    def align(self, operand: Operand, target: Label) -> Operand:
        """Shorten an operand as far as `target` says (memoised per operand and reduction)."""
        skip = len(target) - len(operand.label)
        for at, dim in enumerate(operand.label):
            for place, factor in enumerate(dim):
                goal = target[at + skip]
                cut = goal[place].cut if place < len(goal) else None
                if cut is not factor.cut and cut is not None:
                    moved = self.shorten(operand, (at, place), cut, target)
                    return self.align(moved, target)
        return operand

    def shorten(
        self, operand: Operand, at: tuple[int, int], cut: Reduction, target: Label
    ) -> Operand:
        """One factor of one operand brought to a deeper cut."""
        node = self.unwritten(operand)
        key = ("short", node, operand.label, at, cut, offers(target, cut))
        if node is not None and key in self.memo:
            return self.memo[key]
        factor = operand.label[at[0]][at[1]]
        if factor.extensive:
            raise Unalignable("sums over merged tokens meet a value that was shortened further")
        with owned_by(cut.owner):
            if factor.axis.constant:
                out = self.shorten_constant(operand, at, cut)
            elif operand.stream:
                self.averaged.append((operand, at, cut))
                out = operand
                for step in cut.steps_from(factor.cut):
                    place = (at[0] + len(out.label) - len(operand.label), at[1])
                    out = self.reduce_stream(out, place, step, target)
            else:
                out = self.index_side(operand, at, cut, factor.cut, target)
        if node is not None:
            self.memo[key] = out
        return out

    def shorten_constant(self, operand: Operand, at: tuple[int, int], cut: Reduction) -> Operand:
        """Entries that are all equal: any `count` of them will do."""
        if len(operand.label[at[0]]) > 1:
            raise Unalignable("a dimension of several factors is constant along one of them")
        value = operand.value.narrow(at[0], 0, 1)
        sizes = [-1] * value.dim()
        sizes[at[0]] = cut.count
        label = with_cut(operand.label, at, cut)
        return replace(operand, value=value.expand(sizes), label=label)

    def reduce_stream(
        self, operand: Operand, at: tuple[int, int], step: Reduction, target: Label
    ) -> Operand:
        """One reduction applied to a value of the stream."""
        table = self.view.labels.table
        opened = open_factors(
            operand.value, operand.label, at, step.batch, table, self.shape, target
        )
        how = step.reduce
        if isinstance(how, Slice):
            value = opened.close(opened.value.narrow(opened.token, how.start, step.count))
        elif isinstance(how, Gather):
            value = take(opened, how.index)
        elif not operand.value.is_floating_point():
            value = take(opened, step.local_index())
        elif isinstance(how, Segment):
            value = merge(opened, how)
        else:
            value = combine(opened, how.weights)
        return self.grown(operand, value, at, step, target)

    def index_side(
        self,
        operand: Operand,
        at: tuple[int, int],
        cut: Reduction,
        known: Reduction | None,
        target: Label,
    ) -> Operand:
        """A side operand indexed with the stream's positions (or through the remaining steps)."""
        table, out, place = self.view.labels.table, operand, at
        whole = cut if known is None and not isinstance(cut.reduce, Slice) else None
        for step in [cut] if whole is not None else cut.steps_from(known):
            opened = open_factors(
                out.value, out.label, place, step.batch, table, self.shape, target
            )
            if whole is None and isinstance(step.reduce, Slice):
                value = opened.close(
                    opened.value.narrow(opened.token, step.reduce.start, step.count)
                )
            else:
                value = take(opened, step.position if whole is not None else step.local_index())
            before = len(out.label)
            out = self.grown(out, value, place, step, target)
            place = (place[0] + len(out.label) - before, place[1])
        return out

    def grown(
        self,
        operand: Operand,
        value: torch.Tensor,
        at: tuple[int, int],
        cut: Reduction,
        target: Label,
    ) -> Operand:
        """The shortened operand; a dimension grown for the batch takes the target's factors."""
        label = with_cut(operand.label, at, cut)
        missing = value.dim() - len(label)
        label = ((),) * missing + label
        skip = len(target) - len(label)
        new = []
        for place, dim in enumerate(label):
            offered = target[place + skip] if place + skip >= 0 else ()
            size = value.shape[place]
            batch = cut.batch if cut.per_sample and is_constant(dim) else None
            free = not dim or (batch is not None and find_axis((offered,), batch) is not None)
            took = free and offered and not (isinstance(size, int) and size == 1)
            new.append(offered if took else dim)
        return replace(operand, value=value, label=tuple(new))


def offers(target: Label, cut: Reduction) -> Any:
    """What of the target decides how an operand grows: where the batch would go, and its rank."""
    if cut.batch is None:
        return None
    at = find_axis(target, cut.batch)
    return None if at is None else at[0] - len(target)
