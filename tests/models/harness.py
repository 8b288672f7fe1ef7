"""What tests of whole models share: a model's graph as tokenpass sees it, and ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from tests.models.zoo import FAMILIES
from tokenpass.capture.dynamo import Captured, capture
from tokenpass.config import Config
from tokenpass.edits import Edit
from tokenpass.graph.regions import AttentionRegion
from tokenpass.graph.sites import Site, Stream
from tokenpass.graph.view import View, analyse, fingerprint
from tokenpass.options import read_options
from tokenpass.passes import PASSES
from tokenpass.passes.base import Candidate, LossyPass, PassContext
from tokenpass.pipeline import Planned, make_plan
from tokenpass.reference.facts import FUSED, AttentionFacts, GraphFacts, SiteFacts, StreamFacts
from tokenpass.reference.interpreter import Reference
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

    def reference(self, edits: Sequence[Edit], seed: int = 0) -> list[Any]:
        """The graph's outputs with the edits carried out at full length."""
        with torch.no_grad():
            run = Reference(self.view.module, edits, facts_of(self.view), seed).run
            return list(run(*self.inputs))


def pinned(edits: Sequence[Edit], mark: str, **options: Any) -> Config:
    """A config that pins edits of the graph with this fingerprint."""
    lines = [
        {"pass": e.pass_name, "site": e.site, "policy": e.policy, "level": e.level} for e in edits
    ]
    plan = {"version": 1, "edits": lines, "fingerprint": mark}
    seed = options.pop("seed", None)
    return read_options({"config": plan | ({} if seed is None else {"seed": seed}), **options})


def capture_calls(
    model: Callable[..., Any], calls: Sequence[dict[str, Any]], dynamic: bool | None = None
) -> list[Graph]:
    """The graphs that a model gives for some calls."""
    found: list[Graph] = []

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        captured = capture(module, inputs)
        found.append(Graph(captured, analyse(captured.module, list(captured.data_inputs)), ()))
        return keep_inputs

    def keep_inputs(*inputs: Any) -> Any:
        graph = found[-1]
        found[-1] = Graph(graph.captured, graph.view, inputs)
        return Interpreter(graph.view.module).run(*inputs)

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, dynamic=dynamic)
    with torch.no_grad():
        for call in calls:
            compiled(**call)
    return found


_KNOWN: dict[str, tuple[nn.Module, dict[str, Any], Graph]] = {}


def family(name: str) -> tuple[nn.Module, dict[str, Any], Graph]:
    """A family's model, call and graph; made once in a run."""
    if name not in _KNOWN:
        torch.manual_seed(7)
        model, call = FAMILIES[name]()
        graphs = capture_calls(model, [call])
        assert len(graphs) == 1, f"{name} gives {len(graphs)} graphs"
        _KNOWN[name] = (model, call, graphs[0])
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


# facts for the reference ---------------------------------------------------------------------


def facts_of(view: View) -> GraphFacts:
    """The names and numbers that the reference is told."""
    attentions = {
        node: fused_facts(node, view)
        for node in view.module.graph.nodes
        if node.op == "call_function" and node.target is FUSED
    }
    attentions |= {r.node: written_facts(r, view) for r in view.regions if r.probabilities}
    streams = tuple(stream_facts(stream) for stream in view.streams)
    sites = {
        site.name: site_facts(site, stream, at, attentions[site.region.node])
        for at, stream in enumerate(view.streams)
        for site in stream.sites
    }
    return GraphFacts(streams, tuple(attentions.values()), sites)


def stream_facts(stream: Stream) -> StreamFacts:
    """One stream."""
    positions = sorted(stream.protected.positions, key=str)
    return StreamFacts(
        any(region.causal for region in stream.regions),
        tuple(p.at.name if isinstance(p.at, Node) else p.at for p in positions),
        tuple(node.name for node in stream.chain),
    )


def stream_of(node: Node, view: View, dim: int) -> int | None:
    """The stream whose tokens a dimension counts."""
    counted = [factor.axis.root for factor in view.labels[node][dim]]
    return next((at for at, s in enumerate(view.streams) if s.axis.root in counted), None)


def fused_facts(node: Node, view: View) -> AttentionFacts:
    """A call of fused attention."""
    names = ("query", "key", "value", "attn_mask")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    query, key, mask = given["query"], given["key"], given.get("attn_mask")
    return AttentionFacts(
        node.name,
        query.name,
        key.name,
        stream_of(query, view, -2),
        stream_of(key, view, -2),
        scale=given.get("scale"),
        masks=((mask.name, False),) if isinstance(mask, Node) else (),
    )


def written_facts(region: AttentionRegion, view: View) -> AttentionFacts:
    """A hand-written attention."""
    softmax = region.probabilities
    assert softmax is not None
    return AttentionFacts(
        region.node.name,
        region.query.name,
        region.key.name,
        stream_of(softmax, view, -2),
        stream_of(softmax, view, -1),
        softmax.name,
        region.key_transposed,
        region.scale,
        tuple((mask.name, hides) for mask, hides in region.masks),
    )


def site_facts(site: Site, stream: Stream, at: int, attention: AttentionFacts) -> SiteFacts:
    """One site; `end` has the same rank among the last layer's values as the site in its own."""
    order = {node: place for place, node in enumerate(site.node.graph.nodes)}
    kind = [node for node in stream.chain if node.target is site.node.target]
    rank = sum(order[site.region.node] < order[n] <= order[site.node] for n in kind)
    behind = [n for n in kind if order[n] > order[stream.regions[-1].node]]
    end = behind[min(rank, len(behind)) - 1].name if behind else ""
    return SiteFacts(site.node.name, at, site.token_dim, site.batch_dim, attention, end)


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
