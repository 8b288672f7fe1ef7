"""What a pass is: candidates from a view, and the action that carries one out in the replay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from tokenpass.config_schema import PassOptions, SparsityOptions, TokenOptions
from tokenpass.edits import Rejection
from tokenpass.graph.axis import Size
from tokenpass.graph.sites import Site, Stream
from tokenpass.graph.view import View
from tokenpass.option_values import Spans
from tokenpass.rewrite.read_cut import ReadCut
from tokenpass.rewrite.replacing import Replacement
from tokenpass.rewrite.replay import Action
from tokenpass.statistics.stored import Calibration

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
    options: ClassVar[type[PassOptions]] = TokenOptions
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
    """A graph whose regions may be computed otherwise, and what was calibrated of its model.

    `static`: the placeholders that are parameters or buffers, `weights` what they are; `written`:
    values that share memory with one that is written to, with the writer; `rated`: the dtypes whose
    products of few rows the device's profile has measured for our kernels.
    """

    module: GraphModule
    static: frozenset[Node]
    written: Mapping[Node, Node]
    weights: Mapping[Node, Tensor] = field(default_factory=dict)
    calibration: Calibration | None = None
    rated: frozenset[str] = frozenset()


class RegionPass(ABC):
    """A pass that loses nothing, is always on, and replaces regions by operators of ours.

    Region passes come behind all others, in the order of `PASSES`, each on the graph that the one
    before it gave.
    """

    name: ClassVar[str]

    @abstractmethod
    def replacements(
        self, context: RegionContext
    ) -> tuple[tuple[Replacement, ...], tuple[Rejection, ...]]:
        """What could be computed otherwise, and why other places were left alone."""


@dataclass(frozen=True)
class LossyContext:
    """What the user tells a lossy pass over regions."""

    policy: str | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LossyChoice:
    """A region that could be computed with a share of its entries left out.

    `kind`: equal ones cost the same. `highest`: the largest share that may be left out; `natural`:
    the share that is zero by itself. `density(share)`: the share of weights that is read, for all
    rows; `error(share)`: estimated relative L2 error of the main output; `replacement(share)`: the
    region computed so; `mask(share)`: which entries stay, for the reference.
    """

    pass_name: str
    policy: str
    site: str
    kind: str
    highest: float
    natural: float
    density: Callable[[float], float]
    error: Callable[[float], float]
    replacement: Callable[[float], Replacement]
    mask: Callable[[float], EntryMask]


@dataclass(frozen=True, eq=False)
class EntryMask:
    """Entries of a projection's input that stay: magnitudes above `threshold` ([1] or [entries]).

    `by_gate`: magnitudes of the gate, else of the input itself. Without a threshold each row leaves
    out the `share` of its entries that is smallest, of all rows the least bound counts; `each_row`:
    there is one row, which the reference may have to find among others.
    """

    threshold: Tensor | None
    share: float
    by_gate: bool = False
    each_row: bool = False


@dataclass(frozen=True, eq=False)
class Observation:
    """What a prompt's graph keeps for later calls that read its cache.

    `seen` of the value `node` as `[rows, entries]`, float32, for the policy at a site.
    """

    policy: str
    site: str
    node: Node
    seen: Callable[[Tensor], Tensor]


class LossyRegionPass(ABC):
    """A pass that leaves out some of a region's entries, at a level that the planner chooses.

    `policies`: names of its policies; which is the default depends on what was calibrated.
    """

    name: ClassVar[str]
    options: ClassVar[type[PassOptions]] = SparsityOptions
    policies: ClassVar[tuple[str, ...]]

    @abstractmethod
    def choices(
        self, context: RegionContext, told: LossyContext
    ) -> tuple[tuple[LossyChoice, ...], tuple[Rejection, ...]]:
        """What could be left out where, and why other places were left alone."""

    def observations(self, context: RegionContext, told: LossyContext) -> tuple[Observation, ...]:
        """What a graph of many rows should keep for decoding steps; nothing by default."""
        return ()
