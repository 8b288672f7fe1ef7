"""The rewritten graph: one replay of the captured graph with all actions of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import Axis, Label, find_axis
from tokenpass.graph.view import View
from tokenpass.rewrite.read_cut import ReadCut
from tokenpass.rewrite.reduction import Reduction
from tokenpass.rewrite.replay import Action, Replay
from tokenpass.rewrite.verify import verify_rewrite
from tokenpass.tracing import carry_over, retrace


@dataclass(frozen=True, eq=False)
class Actions:
    """What a replay does: reductions at sites' nodes, exact cuts, and outputs left short."""

    at: Mapping[Node, list[Action]] = field(default_factory=dict)
    read_cuts: tuple[ReadCut, ...] = ()
    keep_short: frozenset[Node] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether the replay would give the captured graph back."""
        return not self.at and not self.read_cuts


@dataclass(frozen=True, eq=False)
class Short:
    """A dimension of a captured value that the new graph holds with fewer tokens."""

    dim: int
    axis: Axis
    batch_dim: int | None


@dataclass(frozen=True, eq=False)
class Rewritten:
    """The new graph, and what it does with the values of the captured one, by node.

    `barriers`: operators before which tokens had to be restored; `short`: values that have lost
    tokens; `averaged`: values at full length that lost them where they met a short one; `whole`:
    sites whose first edit found all tokens of the stream.
    """

    module: GraphModule
    barriers: tuple[Rejection, ...] = ()
    short: Mapping[Node, tuple[Short, ...]] = field(default_factory=dict)
    averaged: Mapping[Node, tuple[Short, ...]] = field(default_factory=dict)
    whole: frozenset[Node] = frozenset()


def rewrite(view: View, actions: Actions, fakes: Sequence[Any], mode: FakeTensorMode) -> Rewritten:
    """Replay the view's graph with edits into a new ATen graph.

    Raises `ReplayRefused` where they would be unsound, `InternalError` where the result is invalid.
    """
    replay = Replay(view, actions.at, actions.read_cuts, actions.keep_short)
    traced = retrace(replay.run, fakes, mode)
    carry_over(view.module, traced)
    mark_owners(traced)
    verify_rewrite(view.module, traced, actions.keep_short)
    whole = frozenset(replay.found_whole.values())
    short, averaged = short_values(replay), averaged_values(replay)
    return Rewritten(traced, tuple(replay.barriers), short, averaged, whole)


def short_values(replay: Replay) -> dict[Node, tuple[Short, ...]]:
    """Values that have lost tokens to an edit that is not exact."""
    found = {}
    for node, (label, *_) in replay.now.items():
        short = [
            Short(at, factor.axis.root, batch_dim(label, factor.cut))
            for at, dim in enumerate(label)
            for factor in dim
            if len(dim) == 1 and not factor.extensive and loses_tokens(factor.cut)
        ]
        if short:
            found[node] = tuple(short)
    return found


def averaged_values(replay: Replay) -> dict[Node, tuple[Short, ...]]:
    """Values at full length that met a short one, by a mean over what had merged."""
    found: dict[Node, tuple[Short, ...]] = {}
    for operand, (dim, _), cut in replay.averaged:
        node, (factor, *more) = getattr(operand, "node", None), operand.label[dim]
        if node is not None and not more and factor.cut is None and loses_tokens(cut):
            short = Short(dim, factor.axis.root, batch_dim(operand.label, cut))
            found[node] = (*found.get(node, ()), short)
    return found


def loses_tokens(cut: Reduction | None) -> bool:
    """Whether some step of a reduction is more than a cut to the positions that are read."""
    while cut is not None:
        if cut.read is None:
            return True
        cut = cut.parent
    return False


def batch_dim(label: Label, cut: Reduction) -> int | None:
    """The dimension that counts the samples, perhaps with more behind them."""
    at = None if cut.batch is None else find_axis(label, cut.batch)
    return at[0] if at is not None and at[1] == 0 else None


def rewrite_at_levels(
    view: View,
    actions_at: Callable[[Sequence[Any]], Actions],
    levels: Sequence[torch.SymInt],
    fakes: Sequence[Any],
    mode: FakeTensorMode,
) -> tuple[GraphModule, frozenset[int]]:
    """The same with symbolic levels, which become inputs of the graph: to price it, not to run.

    Gives with it the owners of the edits that found all of their stream's tokens.
    """
    restored: set[int] = set()

    def run(*inputs: Any) -> Any:
        actions = actions_at(inputs[len(fakes) :])
        replay = Replay(view, actions.at, actions.read_cuts, actions.keep_short)
        outputs = replay.run(*inputs[: len(fakes)])
        restored.update(replay.found_whole)
        return outputs

    traced = retrace(run, [*fakes, *levels], mode)
    mark_owners(traced)
    return traced, frozenset(restored)


def mark_owners(module: GraphModule) -> None:
    """Turn the tracer's custom marks into `meta["tokenpass_edit"]`, the edit that made a node."""
    for node in module.graph.nodes:
        custom = node.meta.get("custom")
        if custom and "tokenpass_edit" in custom:
            node.meta["tokenpass_edit"] = custom["tokenpass_edit"]
            rest = {key: value for key, value in custom.items() if key != "tokenpass_edit"}
            node.meta["custom"] = rest
            if not rest:
                del node.meta["custom"]


def hinted(value: Any) -> Any:
    """A size as the number it had in the example call."""
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat) else value


def static_fakes(fakes: Sequence[Any], mode: FakeTensorMode) -> list[Any]:
    """The same inputs in another fake mode, every dynamic size at the example call's."""
    made = []
    for fake in fakes:
        if not isinstance(fake, torch.Tensor):
            made.append(hinted(fake))
            continue
        sizes, strides = [hinted(s) for s in fake.shape], [hinted(s) for s in fake.stride()]
        with mode:
            empty = torch.empty_strided(sizes, strides, dtype=fake.dtype, device=fake.device)
        made.append(empty)
    return made
