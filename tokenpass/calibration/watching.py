"""Graphs whose projections are observed while they run: a backend that compiles nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from tokenpass.capture.dynamo import Captured, capture
from tokenpass.capture.subclasses import on_parts
from tokenpass.errors import InternalError, UserError
from tokenpass.graph.aliases import written_nodes
from tokenpass.graph.pointwise_reader import inputs_of
from tokenpass.graph.projections import (
    Part,
    ProjectionRegion,
    columns_of,
    factors,
    gated,
    projection_region,
    projections,
)
from tokenpass.ops.pointwise import Call, Expression, Input, evaluate, parts
from tokenpass.pipeline.regions import static_inputs
from tokenpass.statistics import STATISTICS, Observed, SiteStatistics, weight_fingerprint

BENDING = frozenset(
    {
        *("relu", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "erf", "exp"),
        *("maximum", "minimum", "clamp", "where_gt"),
    }
)
"""Functions that an activation is made of, and a norm or a residual is not."""


@dataclass(frozen=True, eq=False)
class Watched:
    """One projection of a graph. `up`: the region's input that its gate multiplies."""

    name: str
    region: ProjectionRegion
    up: Node | None

    @property
    def key(self) -> tuple[Node, str]:
        """What is observed at projections with equal keys is equal."""
        return self.region.hidden, str(self.region.gate)


@dataclass(frozen=True, eq=False)
class WatchedGraph:
    """A captured graph and its projections by node. `written`: nodes whose memory is written to."""

    captured: Captured
    sites: Mapping[Node, Watched]
    written: frozenset[Node]


def watched_graph(module: GraphModule, example_inputs: Sequence[Any]) -> WatchedGraph:
    """Capture a graph and find what is to be observed.

    Raises `CaptureRefused` for what cannot be captured, `UserError` for a model that is training.
    """
    captured = capture(module, example_inputs)
    if captured.train_mode is not None:
        name, line = captured.train_mode
        raise UserError(
            f"calibrate: expected a model in eval mode, got an operator that acts as in training "
            f"({name} at {line or 'an unknown line'}): call model.eval()"
        )
    graph = captured.module.graph
    static = static_inputs(captured.module, captured)
    written = frozenset(written_nodes(graph))
    sites = {}
    for node, name in projections(graph, static).items():
        region = projection_region(node, static)
        if region is not None:
            sites[node] = watched(name, region, static, written)
    return WatchedGraph(captured, sites, written)


def watched(
    name: str, region: ProjectionRegion, static: frozenset[Node], written: frozenset[Node]
) -> Watched:
    """A projection, with its gate where that can still be computed when the projection runs."""
    if written & {*region.nodes, *region.inputs}:
        return Watched(name, region, None)
    found = gated(region, static)
    if found is None or found.gate is None or found.up is None or found.blocked:
        return Watched(name, region, None)
    return Watched(name, found, factor(found, found.gate, found.up))


def factor(region: ProjectionRegion, gate: Expression, up: Part) -> Node:
    """The input of a gated region that its gate multiplies."""
    for term in factors(region.expression):
        if isinstance(term, Input) and term.index not in inputs_of(gate):
            node = region.inputs[term.index]
            part = columns_of(node)
            if part is not None and (part.projection, part.start) == (up.projection, up.start):
                return node
    raise InternalError(f"calibrate: {region.down.name} has no factor that is its other projection")


class Watcher:
    """A Dynamo backend: every graph runs operator by operator, its projections observed.

    `receive` gets what one call of a projection read. `left_out` tells the causes for which graphs
    were not observed, `errors` what is to be raised when Dynamo has let go of it. `measure`, while
    it is set, runs the graphs in the place of the observer.
    """

    def __init__(self, receive: Callable[[str, SiteStatistics], None]) -> None:
        self.receive = receive
        self.padding: Tensor | None = None
        self.measure: Callable[[WatchedGraph, Sequence[Any]], Any] | None = None
        self.left_out: dict[str, int] = {}
        self.errors: list[UserError] = []

    def __call__(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        # an exception would leave Dynamo wrapped in one of its own
        try:
            graph = watched_graph(module, example_inputs)
        except UserError as error:
            self.errors.append(error)
            return module.forward
        except Exception as error:  # whatever the backend would leave dense for
            cause = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            self.left_out[cause] = self.left_out.get(cause, 0) + 1
            return module.forward
        fingerprints: dict[Node, str] = {}

        def run(*inputs: Any) -> Any:
            if self.measure is not None:
                return self.measure(graph, inputs)
            return Observer(graph, fingerprints, self).run(*inputs)

        return on_parts(run) if graph.captured.over_parts else run


@dataclass(eq=False)
class Shared:
    """What projections of one value have in common, while some of them are still to come."""

    left: int
    values: dict[str, Any] = field(default_factory=dict)


class Observer(Interpreter):
    """Runs a graph and hands on the statistics of every projection's input."""

    def __init__(
        self, graph: WatchedGraph, fingerprints: dict[Node, str], watcher: Watcher
    ) -> None:
        super().__init__(graph.captured.module)
        self.sites = graph.sites
        self.fingerprints = fingerprints
        self.watcher = watcher
        self.shared: dict[tuple[Node, str], Shared] = {}
        self.wanted: dict[Node, int] = {}  # values that gates read, which the graph may drop before
        for site in graph.sites.values():
            self.shared.setdefault(site.key, Shared(0)).left += 1
            for node in read_by(site):
                self.wanted[node] = self.wanted.get(node, 0) + 1
        self.kept: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        site = self.sites.get(n)
        if site is not None:
            (hidden, weight, *_), _ = self.fetch_args_kwargs_from_env(n)
            self.observe(n, site, hidden, weight)
        value = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = value
        return value

    def observe(self, node: Node, site: Watched, hidden: Tensor, weight: Tensor) -> None:
        """Hand on one projection's statistics."""
        shared = self.shared[site.key]
        if not shared.values:
            seen = observed(site, hidden, self.kept, self.watcher.padding)
            shared.values = {one.name: one.of(seen) for one in STATISTICS}
        if node not in self.fingerprints:
            self.fingerprints[node] = weight_fingerprint(weight)
        self.watcher.receive(site.name, SiteStatistics(self.fingerprints[node], **shared.values))
        shared.left -= 1
        if not shared.left:
            shared.values = {}
        for read in read_by(site):
            self.wanted[read] -= 1
            if not self.wanted[read]:
                self.kept.pop(read, None)


def read_by(site: Watched) -> Iterable[Node]:
    """The values that are needed for a projection's gate."""
    return site.region.inputs if site.up is not None else ()


def observed(
    site: Watched, hidden: Tensor, values: Mapping[Node, Tensor], padding: Tensor | None
) -> Observed:
    """What one call of a projection read, without padded rows."""
    region = site.region
    rows = real_rows(hidden, padding)
    matrix = as_matrix(hidden)
    gate = up = None
    if site.up is not None and region.gate is not None:
        given = [as_matrix(values[node]) for node in region.inputs]
        gate = evaluate(region.gate, given).expand_as(matrix)
        up = as_matrix(values[site.up]).expand_as(matrix)
        gate, up = (gate, up) if rows is None else (gate[rows], up[rows])
    bent = gate is not None or bends(region.expression)
    return Observed(matrix if rows is None else matrix[rows], gate, up, bent)


def bends(expression: Expression) -> bool:
    """Whether there is an activation function in it."""
    return any(isinstance(one, Call) and one.function in BENDING for one in parts(expression))


def as_matrix(value: Tensor) -> Tensor:
    """`[rows, entries]`, or `[1, 1]` of a number."""
    return value.reshape(-1, value.shape[-1]) if value.dim() else value.reshape(1, 1)


def real_rows(hidden: Tensor, padding: Tensor | None) -> Tensor | None:
    """Which rows of `[..., entries]` are tokens, bool `[rows]`; None where all are.

    `padding`: a mask `[batch, tokens]`, 0 for padded ones. A value that does not count tokens so
    (a class token's, one row for each sample) is taken whole.
    """
    if padding is None:
        return None
    lead = tuple(hidden.shape[:-1])
    if lead != tuple(padding.shape) and lead != (padding.numel(),):
        return None
    return padding.reshape(-1).to(hidden.device) != 0
