"""Values of a graph computed another way: calls of our operators in the place of others.

    h = relu(linear(x, w)); y = linear(h, v)   ->   i, k, n = mask_compact([z], "relu(a0)")
                                                    y = sparse_input_gemv(i, k, n, v)

What was needed for the replaced value alone disappears. The given graph stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from tokenpass.cost.group_time import WeightRead
from tokenpass.tracing import (
    carry_over,
    fake_value,
    is_impure,
    placeholders,
    plain_constants,
    retrace,
)


@dataclass(frozen=True, eq=False)
class Replacement:
    """A node whose value `make` computes otherwise, from nodes that stand before it.

    `origin`: the operator of the model whose source line and module the new calls are told to have.
    `make` is given the means to add calls, and returns the node of the same shape and dtype.
    `site`, `policy` and `level` name it in a plan; `operators` are those it calls; `packed_bytes`
    is what second copies of weights take that its kernels keep. `read` is set where nothing but
    speed is gained: the weight whose reading must be faster by our kernel than by the library.
    `instead`: projections beside `origin` whose part in the value it computes itself, whatever else
    replaces them.
    """

    node: Node
    origin: Node
    site: str
    policy: str
    level: str
    make: Callable[[Calls], Node]
    operators: tuple[str, ...]
    packed_bytes: int = 0
    read: WeightRead | None = None
    instead: frozenset[Node] = frozenset()


@dataclass(frozen=True, eq=False)
class Given:
    """Thresholds that a call is given from what an earlier call on the same cache left.

    `derive` makes them of what was kept for (`policy`, `site`), `[entries]`; `default` stands in
    where nothing was. `form`: what the graph reads of them.
    """

    policy: str
    site: str
    derive: Callable[[Tensor], Tensor]
    default: Tensor
    form: Callable[[Tensor], Tensor] = field(default=lambda threshold: threshold)

    @property
    def example(self) -> Tensor:
        """What the graph reads where nothing was kept."""
        return self.form(self.default)

    def places(self) -> tuple[Given, Given]:
        """The same as a list of places and its length, for thresholds that tell by place alone."""
        return replace(self, form=listed_places), replace(self, form=listed_count)


def listed_places(threshold: Tensor) -> Tensor:
    """The entries whose threshold is negative, ascending, then the others; int32 `[entries]`."""
    return (threshold >= 0).to(torch.int8).argsort(stable=True).to(torch.int32)


def listed_count(threshold: Tensor) -> Tensor:
    """How many entries have a negative threshold; int32 `[1]`."""
    return (threshold < 0).sum(dtype=torch.int32).reshape(1)


GIVEN = "tokenpass_given"
"""In the meta of a node that holds a `Given`'s default."""


@dataclass(frozen=True, eq=False)
class Calls:
    """Adds calls before one node of a copied graph, with their fake values and its source line."""

    graph: Graph
    before: Node
    origin: Node
    owner: int
    copied: dict[Node, Node]
    constants: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, node: Node) -> Node:
        """The copy of a node of the given graph."""
        return self.copied[node]

    def call(self, target: Any, *args: Any) -> Node:
        """A call on nodes of the copied graph."""
        with self.graph.inserting_before(self.before):
            made = self.graph.call_function(target, args)
        known = ("stack_trace", "nn_module_stack", "source_fn_stack")
        made.meta = {key: self.origin.meta[key] for key in known if key in self.origin.meta}
        made.meta["tokenpass_edit"] = self.owner
        made.meta["val"] = target(*map_arg(args, fake_value))
        return made

    def constant(self, value: Tensor) -> Node:
        """A tensor that the graph holds itself."""
        name = f"_tokenpass_constant_{self.owner}_{len(self.constants)}"
        self.constants[name] = value
        with self.graph.inserting_before(self.before):
            made = self.graph.get_attr(name)
        mode = next(filter(None, map(fake_mode_of, self.graph.nodes)))
        made.meta = {"val": mode.from_tensor(value), "tokenpass_edit": self.owner}
        return made

    def given(self, value: Given) -> Node:
        """A tensor that comes with each call; the graph holds its default until it is lowered."""
        made = self.constant(value.example)
        made.meta[GIVEN] = value
        return made

    def inlined(self, function: Callable[..., Any], *args: Node) -> Node:
        """The calls that a plain torch function of some values makes; it returns one tensor."""
        fakes = [fake_value(node) for node in args]
        mode = next(filter(None, map(fake_mode_of, args)))
        traced = retrace(function, fakes, mode)
        inside: dict[Node, Node] = dict(zip(placeholders(traced), args, strict=True))
        known = ("stack_trace", "nn_module_stack", "source_fn_stack")
        with self.graph.inserting_before(self.before):
            result = self.graph.graph_copy(traced.graph, inside)
        for node in traced.graph.nodes:
            if node.op == "call_function":
                meta = {key: self.origin.meta[key] for key in known if key in self.origin.meta}
                inside[node].meta = {**meta, "val": node.meta["val"], "tokenpass_edit": self.owner}
        return result  # type: ignore[return-value]


def fake_mode_of(node: Node) -> FakeTensorMode | None:
    """The mode in which a node's value was traced."""
    value = fake_value(node)
    return value.fake_mode if isinstance(value, FakeTensor) else None


def replaced(
    module: GraphModule, replacements: Sequence[Replacement], first_owner: int
) -> GraphModule:
    """A copy of a graph with values replaced; each replacement's calls carry its number."""
    graph = Graph()
    copied: dict[Node, Node] = {}
    output = graph.graph_copy(module.graph, copied)
    (old_output,) = (node for node in module.graph.nodes if node.op == "output")
    graph.output(output).meta = dict(old_output.meta)
    constants: dict[str, Tensor] = {}
    for owner, replacement in enumerate(replacements, start=first_owner):
        node = copied[replacement.node]
        calls = Calls(graph, node, replacement.origin, owner, copied, constants)
        made = replacement.make(calls)
        node.replace_all_uses_with(made)
        copied[replacement.node] = made
    graph.eliminate_dead_code(is_impure)
    new = GraphModule(attributes(module) | constants, graph)
    plain_constants(new)
    carry_over(module, new)
    return new


def attributes(module: GraphModule) -> dict[str, Any]:
    """What a graph reads of its module, by name."""
    names = (str(node.target) for node in module.graph.nodes if node.op == "get_attr")
    return {name: attrgetter(name)(module) for name in names}
