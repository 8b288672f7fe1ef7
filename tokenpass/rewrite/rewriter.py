"""The rewritten graph: one replay of the captured graph with all actions of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node

from tokenpass.edits import Rejection
from tokenpass.graph.view import View
from tokenpass.rewrite.read_cut import ReadCut
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
class Rewritten:
    """The new graph, and the operators before which tokens had to be restored."""

    module: GraphModule
    barriers: tuple[Rejection, ...]


def rewrite(view: View, actions: Actions, fakes: Sequence[Any], mode: FakeTensorMode) -> Rewritten:
    """Replay the view's graph with edits into a new ATen graph.

    Raises `ReplayRefused` where they would be unsound, `InternalError` where the result is invalid.
    """
    replay = Replay(view, actions.at, actions.read_cuts, actions.keep_short)
    traced = retrace(replay.run, fakes, mode)
    carry_over(view.module, traced)
    mark_owners(traced)
    verify_rewrite(view.module, traced, actions.keep_short)
    return Rewritten(traced, tuple(replay.barriers))


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
        restored.update(replay.restored)
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
