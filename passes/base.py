"""What a pass is: candidates from a view, and the action that carries one out in the replay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from tokenpass.edits import Rejection
from tokenpass.graph.axis import Size
from tokenpass.graph.sites import Site, Stream
from tokenpass.graph.view import View
from tokenpass.option_values import Spans
from tokenpass.rewrite.read_cut import ReadCut
from tokenpass.rewrite.replacing import Replacement
from tokenpass.rewrite.replay import Action

Level = Callable[[Size], Size]
"""From a stream's full length to the tokens kept."""

Reason = tuple[str, str, str] | None
"""(code, because, hint) of a place that is left alone; None where it need not be."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One edit that could be made: everything the planner and the rewriter need of it.

    `depth`: share of the stream's attention layers that lie before the site. `lowest`: the least
    share of the incoming tokens that may stay. `never_below`: tokens that must stay at any level.
    `spared`: tokens that stay beside the lowest share (a merge cannot move protected tokens).
    `span`: the positions that may lose tokens (none: all may); `apart`: how many tokens of the
    example call lie outside it.
    """

    pass_name: str
    policy: str
    site: Site
    stream: Stream
    depth: float
    lowest: float
    never_below: int = 1
    spared: int = 0
    span: Spans = ()
    apart: int = 0


@dataclass(frozen=True)
class Found:
    """Candidates of a pass, and why other places were left alone."""

    candidates: tuple[Candidate, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True)
class PassContext:
    """What the user allows a pass: options of the call that change what is sound or wanted."""

    policy: str | None = None
    seed: int = 0
    shorter_cache: bool = False
    span: Spans = ()
    options: Mapping[str, Any] = field(default_factory=dict)


class LossyPass(ABC):
    """A pass that the planner may use at some level, at some sites.

    `policies`: names of its policies, the default first. `error_weight`: the prior relative error
    of removing all tokens at half depth by this policy (stated and rough until calibrated).
    """

    name: ClassVar[str]
    role: ClassVar[str]
    lowest: ClassVar[float]
    policies: ClassVar[tuple[str, ...]]
    error_weight: ClassVar[Mapping[str, float]]

    @abstractmethod
    def candidates(self, view: View, context: PassContext) -> Found:
        """Sites where an edit would be sound, and reasons for the others."""

    @abstractmethod
    def action(self, candidate: Candidate, level: Level, owner: int, seed: int) -> Action:
        """What the replay does at the candidate's site; `owner` marks the nodes it makes."""


class ExactPass(ABC):
    """A pass that loses nothing, is always on, and cuts tokens that nobody reads."""

    name: ClassVar[str]

    @abstractmethod
    def read_cuts(self, view: View, first_owner: int) -> tuple[tuple[ReadCut, ...], Found]:
        """Exact cuts of the graph, one for each stream that allows one."""


@dataclass(frozen=True, eq=False)
class RegionContext:
    """A graph whose regions may be computed otherwise.

    `static`: the placeholders that are parameters or buffers; `written`: values that share memory
    with one that is written to, with the writer; `rated`: the dtypes whose products of few rows the
    device's profile has measured for our kernels.
    """

    module: GraphModule
    static: frozenset[Node]
    written: Mapping[Node, Node]
    rated: frozenset[str] = frozenset()


class RegionPass(ABC):
    """A pass that loses nothing, is always on, and replaces regions by operators of ours."""

    name: ClassVar[str]

    @abstractmethod
    def replacements(
        self, context: RegionContext
    ) -> tuple[tuple[Replacement, ...], tuple[Rejection, ...]]:
        """What could be computed otherwise, and why other places were left alone."""
