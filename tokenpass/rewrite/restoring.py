"""Restoring operands to full length, as far as that is sound."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import (
    Label,
    with_cut,
)
from tokenpass.graph.call import Operand
from tokenpass.graph.demand_lattice import Extent
from tokenpass.graph.sites import Stream
from tokenpass.rewrite.gather import combine, open_factors, take, write_back
from tokenpass.rewrite.reduction import Dense, Reduction, owned_by
from tokenpass.rewrite.shortening import Shortening
from tokenpass.tracing import module_path, source_line


class ReplayRefused(Exception):
    """The edits cannot be carried out soundly; carries the reason and the edit that it concerns."""

    def __init__(self, rejection: Rejection, owner: int | None) -> None:
        super().__init__(str(rejection))
        self.rejection = rejection
        self.owner = owner


class Restoring(Shortening):
    """Values that can be shortened, and given back the tokens that left."""

    def restore(self, operand: Operand, at: tuple[int, int], because: str = "a barrier") -> Operand:
        """The operand with one factor back at full length."""
        node = self.unwritten(operand)
        key = ("full", node, operand.label, at)
        if node is not None and key in self.memo:
            return self.memo[key]
        out, factor = operand, operand.label[at[0]][at[1]]
        cut: Reduction | None = factor.cut
        if cut is not None and factor.axis.root in self.view.labels.table.ordered_by:
            self.refuse_restore(operand, cut, because)  # their order is that of fewer rows
        while cut is not None:
            with owned_by(cut.owner):
                out = self.restore_step(out, at, cut, because)
            cut = cut.parent
        if node is not None:
            self.memo[key] = out
        return out

    def restore_step(
        self, operand: Operand, at: tuple[int, int], cut: Reduction, because: str
    ) -> Operand:
        """Undo one reduction."""
        table = self.view.labels.table
        factor = operand.label[at[0]][at[1]]
        label, value = with_cut(operand.label, at, cut.parent), operand.value
        if factor.extensive and cut.sizes is not None:
            shares = 1.0 / cut.sizes.clamp_min(1.0)
            value = value * cut.spread(shares.to(value.dtype), operand.label, at, self.shape)
            label = with_cut(with_cut(label, at, None), at, cut.parent)  # a sum no longer
        opened = open_factors(value, operand.label, at, cut.batch, table, self.shape)
        if isinstance(cut.reduce, Dense) and value.is_floating_point():
            value = combine(opened, cut.reduce.back)
        elif cut.representative is not None:
            value = take(opened, cut.representative)
        elif cut.saved is not None and self.is_like_site(operand, cut):
            saved = open_factors(cut.saved, label, at, cut.batch, table, self.shape)
            value = write_back(opened, saved, cut.local_index())
        elif self.only_protected(operand, cut):
            sizes = list(opened.value.shape)
            sizes[opened.token] = cut.full
            empty = opened.value.new_zeros(sizes)
            value = write_back(opened, replace(opened, value=empty), cut.local_index())
        else:
            self.refuse_restore(operand, cut, because)
        return replace(operand, value=value, label=label)

    def is_like_site(self, operand: Operand, cut: Reduction) -> bool:
        """Whether a value is of the kind that was saved when tokens left, and laid out like it.

        Behind the end of the stream no value is: a head's last norm may be the same operator.
        """
        node, stream = getattr(operand, "node", None), self.stream_of(cut)
        if node is None or stream is None or node not in stream.chain:
            return False
        if node.target is not cut.memo["site"].node.target:
            return False
        if not same_layout(cut.memo["saved_label"], operand.label):
            return False
        end = self.tail(stream, cut)
        return end is not None and self.order[node] <= self.order[end]

    def only_protected(self, operand: Operand, cut: Reduction) -> bool:
        """Whether nothing is read of a value but positions that never leave."""
        node, stream = getattr(operand, "node", None), self.stream_of(cut)
        if node is None or stream is None or node not in stream.demand:
            return False
        demand = stream.demand[node]
        read_alone = demand.extent is Extent.AT
        return read_alone and demand.positions <= stream.protected.positions

    def stream_of(self, cut: Reduction) -> Stream | None:
        """The stream that a reduction shortens."""
        return next((s for s in self.view.streams if s.axis is cut.axis), None)

    def tail(self, stream: Stream, cut: Reduction) -> Node | None:
        """What the pruned site is to its own layer, in the last one: pruned tokens return there."""
        while cut.saved is None and cut.parent is not None:
            cut = cut.parent
        site = cut.memo["site"]
        kind = [node for node in stream.chain if node.target is site.node.target]
        first, last = self.order[site.region.node], self.order[stream.regions[-1].node]
        rank = sum(first < self.order[node] <= self.order[site.node] for node in kind)
        behind = [node for node in kind if self.order[node] > last]
        return behind[min(rank, len(behind)) - 1] if behind else None

    def refuse_restore(self, operand: Operand, cut: Reduction, because: str) -> None:
        """Tokens that left cannot be given back to a value that is not the stream's."""
        node = getattr(operand, "node", None)
        where = (module_path(node) or node.name) if node is not None else "graph"
        raise ReplayRefused(
            Rejection(
                "restore_off_stream",
                where,
                f"{because} needs all tokens of a value that pruned tokens never had",
                "merge tokens here instead, or prune after it",
                source_line(node) if node is not None else "",
            ),
            cut.owner,
        )


def same_layout(left: Label, right: Label) -> bool:
    """Whether two values count the same things in the same dimensions."""
    return [[factor.axis.root for factor in dim] for dim in left] == [
        [factor.axis.root for factor in dim] for dim in right
    ]


def leaves_values(cut: Reduction | None) -> bool:
    """Whether some reduction of a chain can only be undone on the stream itself."""
    while cut is not None:
        if cut.saved is not None and cut.representative is None:
            return True
        cut = cut.parent
    return False
