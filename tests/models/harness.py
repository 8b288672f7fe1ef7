"""What tests of whole models share: a model's graph as tokenpass sees it, and ways to run it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from tests.models.zoo import FAMILIES
from tokenpass.capture.dynamo import Captured, capture
from tokenpass.capture.subclasses import all_parts
from tokenpass.config import Config
from tokenpass.edits import Edit
from tokenpass.graph.view import View, analyse, fingerprint
from tokenpass.options import read_options
from tokenpass.passes import PASSES
from tokenpass.passes.base import Candidate, LossyPass, PassContext
from tokenpass.pipeline import Planned, make_plan
from tokenpass.pipeline.facts import reference_of
from tokenpass.rewrite.rewriter import hinted


@dataclass(frozen=True, eq=False)
class Graph:
    """One captured graph with its facts and the inputs of the call that made it."""

    captured: Captured
    view: View
    inputs: tuple[Any, ...]

    def run(self, module: GraphModule) -> list[Any]:
        """The graph's outputs by a module with its placeholders."""
        with torch.no_grad():
            return list(Interpreter(module).run(*self.inputs))

    def dense(self) -> list[Any]:
        """The graph's outputs without edits."""
        return self.run(self.view.module)

    def planned(self, edits: Sequence[Edit], **options: Any) -> Planned:
        """The graph with pinned edits."""
        mark = fingerprint(self.view.module)
        return make_plan(self.view, self.captured, pinned(edits, mark, **options))

    def reference(self, planned: Planned) -> list[Any]:
        """The graph's outputs with a plan's edits carried out at full length."""
        with torch.no_grad():
            return list(reference_of(planned).run(*self.inputs))


def pinned(edits: Sequence[Edit], mark: str, **options: Any) -> Config:
    """A config that pins edits of the graph with this fingerprint."""
    lines = [
        {"pass": e.pass_name, "site": e.site, "policy": e.policy, "level": e.level}
        | ({"span": e.span} if e.span else {})
        for e in edits
    ]
    plan = {"version": 1, "edits": lines, "fingerprint": mark}
    seed = options.pop("seed", None)
    return read_options({"config": plan | ({} if seed is None else {"seed": seed}), **options})


def capture_calls(
    model: Callable[..., Any],
    calls: Sequence[dict[str, Any]],
    dynamic: bool | None = None,
    fullgraph: bool = False,
) -> list[Graph]:
    """The graphs that a model gives for some calls, with the inputs that each was called with."""
    found: list[Graph] = []

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        captured = capture(module, inputs)
        place = len(found)
        found.append(
            Graph(
                captured,
                analyse(captured.module, list(captured.data_inputs), captured.examples),
                (),
            )
        )

        def keep_inputs(*given: Any) -> Any:
            graph = found[place]
            found[place] = Graph(graph.captured, graph.view, tuple(all_parts(given)))
            return Interpreter(graph.view.module).run(*found[place].inputs)

        return keep_inputs

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=fullgraph)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the models' own
        for call in calls:
            compiled(**call)
    return found


def capture_trace(model: nn.Module, call: dict[str, Any]) -> Graph:
    """The graph of one call, traced without Dynamo: sizes are fixed, and sites have no modules."""
    held = dict(model.named_parameters())
    inputs = (*held.values(), *call.values())

    def run(*given: Any) -> Any:
        split = len(held)
        named = dict(zip(held, given[:split], strict=True))
        return functional_call(model, named, (), dict(zip(call, given[split:], strict=True)))

    graph = torch.fx.Graph()
    entries = [graph.placeholder(f"input_{at}") for at in range(len(inputs))]
    graph.output(graph.call_function(run, tuple(entries)))
    with torch.no_grad():
        captured = capture(GraphModule(nn.Module(), graph), inputs)
    view = analyse(captured.module, list(captured.data_inputs), captured.examples)
    return Graph(captured, view, inputs)


def made(make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> tuple[nn.Module, dict[str, Any]]:
    """A family's model and call, always the same ones."""
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


_KNOWN: dict[str, tuple[nn.Module, dict[str, Any], Graph]] = {}


def family(name: str) -> tuple[nn.Module, dict[str, Any], Graph]:
    """A family's model, call and largest graph; made once in a run."""
    if name not in _KNOWN:
        model, call = made(FAMILIES[name])
        graphs = capture_calls(model, [call])
        largest = max(graphs, key=lambda graph: len(graph.view.module.graph.nodes))
        _KNOWN[name] = (model, call, largest)
    return _KNOWN[name]


def tensors(outputs: Any) -> list[torch.Tensor]:
    """All floating tensors of a model's output, in order."""
    leaves = tree_leaves(dict(outputs) if hasattr(outputs, "to_tuple") else outputs)
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]


def relative(got: Any, expected: Any) -> float:
    """Largest relative L2 distance of any floating output; shapes must agree."""
    worst = 0.0
    for x, y in zip(tensors(got), tensors(expected), strict=True):
        assert x.shape == y.shape
        assert torch.isfinite(x).all()
        worst = max(worst, float((x - y).norm() / y.norm().clamp_min(1e-30)))
    return worst


class ConstantsCheck(Interpreter):
    """Runs a captured graph and notes values that vary along an axis that is called constant."""

    def __init__(self, view: View) -> None:
        super().__init__(view.module)
        self.view = view
        self.wrong: list[str] = []

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if not isinstance(value, torch.Tensor) or n not in self.view.labels.of:
            return value
        found = [factor for dim in self.view.labels[n] for factor in dim]
        sizes = [hinted(factor.axis.size) for factor in found]
        if None in sizes or math.prod(sizes) != value.numel() or not value.numel():
            return value  # sizes of this call are known to the running model alone
        apart = value.reshape(sizes)
        for at, factor in enumerate(found):
            one = apart.narrow(at, 0, 1).expand_as(apart)
            if factor.axis.constant and not torch.equal(apart, one):
                self.wrong.append(f"{n.name} varies along {factor.axis}")
        return value


def varying_constants(graph: Graph) -> list[str]:
    """Values of a call in which entries differ that the labels say are equal."""
    run = ConstantsCheck(graph.view)
    with torch.no_grad():
        run.run(*graph.inputs)
    return run.wrong


# plans ---------------------------------------------------------------------------------------


def candidates(
    graph: Graph, pass_name: str, policy: str | None = None, **context: Any
) -> list[Candidate]:
    """Candidates of one pass in the graph's first stream that has some."""
    item = next(p for p in PASSES if p.name == pass_name)
    assert isinstance(item, LossyPass)
    found = item.candidates(graph.view, PassContext(policy, **context)).candidates
    return [c for c in found if c.stream is found[0].stream]


def length(candidate: Candidate) -> int:
    """Tokens of a candidate's stream in the example call."""
    return int(hinted(candidate.stream.axis.size))


def falling(graph: Graph, names: Sequence[tuple[str, str]], keep: float = 0.7) -> list[Edit]:
    """Edits that share the layers among passes: each (pass, policy) acts in turn, at sites that
    rise, as long as there are any; every edit keeps a share of the tokens that come in.
    """
    order = {node: at for at, node in enumerate(graph.view.module.graph.nodes)}
    edits: list[Edit] = []
    last, tokens = -1, None
    for pass_name, policy in names:
        found = candidates(graph, pass_name, policy)
        later = [c for c in found if order[c.site.node] > last]
        if not later:
            break
        tokens = length(later[0]) if tokens is None else tokens
        tokens = max(int(tokens * keep), 3)
        edits.append(Edit(pass_name, later[0].site.name, policy, str(tokens)))
        last = order[later[0].site.node]
    return edits
