"""How much of a projection's error reaches the output: one site at a time, on one batch.

    y = W h   ->   y' = W (h where |h| > t, else 0),   t the median of the site's |h| above 0

    sensitivity = (|out' - out| / |out|) / (|y' - y| / |y|)

Everything else of the graph is as it was: only what depends on the projection is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from tokenpass.calibration.watching import WatchedGraph
from tokenpass.statistics import Histogram, weight_fingerprint
from tokenpass.tracing import is_float, output_nodes

REFERENCE_SHARE = 0.5
"""The share of entries that is dropped of those that are not 0 (an activation's own zeros change
nothing); one level, since what is wanted is a ratio of errors.
"""

Ask = Callable[[str, str], Histogram | None]
"""The magnitudes of a projection, by name and weight, that is to be measured; None for others."""

Tell = Callable[[str, str, float | None], None]
"""Gets the sensitivity of a projection, by name and weight."""


class Measurement(Interpreter):
    """Runs a graph once with every value kept, then parts of it again."""

    def __init__(self, graph: WatchedGraph) -> None:
        super().__init__(graph.captured.module, garbage_collect_values=False)
        self.watched = graph
        self.order = {node: at for at, node in enumerate(graph.captured.module.graph.nodes)}

    def measure(self, inputs: Sequence[Any], ask: Ask, tell: Tell) -> Any:
        """The graph's outputs; `tell` gets every projection's sensitivity that was asked for.

        None where the projection's result does not change, no floating output depends on it, or
        something that does is written to in place.
        """
        out = self.run(*inputs)
        kept = dict(self.env)
        for node, site in self.watched.sites.items():
            weight = weight_fingerprint(kept[site.region.weight])
            magnitude = ask(site.name, weight)
            if magnitude is not None:
                tell(site.name, weight, self.sensitivity(node, magnitude, kept))
        return out

    def sensitivity(
        self, node: Node, magnitude: Histogram, kept: Mapping[Node, Any]
    ) -> float | None:
        """One projection's."""
        needed, out = self.way(node)
        if out is None or self.watched.written & {node, *needed}:
            return None
        threshold = reference_threshold(magnitude)
        self.env = dict(kept)
        hidden, *rest = self.operands(node, kept)
        small = hidden.abs() <= threshold
        changed = node.target(torch.where(small, 0, hidden), *rest, **node.kwargs)  # type: ignore[operator]
        local = relative(changed, kept[node])
        if not local:
            return None
        self.env[node] = changed
        for one in needed:
            self.env[one] = self.run_node(one)
        far = relative(self.env[out], kept[out])
        return None if far is None else far / local

    def operands(self, node: Node, kept: Mapping[Node, Any]) -> Any:
        """A call's arguments with the values of nodes in their place."""
        return map_arg(node.args, lambda n: kept[n])

    def way(self, node: Node) -> tuple[list[Node], Node | None]:
        """What leads from a projection to the graph's main output, in order, and that output.

        The main output is the floating one that is computed last of those that depend on it: the
        logits, not a cache of keys.
        """
        after = reachable(node, lambda n: n.users)
        outputs = [
            n
            for n in output_nodes(self.watched.captured.module)
            if isinstance(n, Node) and is_float(n) and (n in after or n is node)
        ]
        if not outputs:
            return [], None
        out = max(outputs, key=self.order.__getitem__)
        before = reachable(out, lambda n: n.all_input_nodes) | {out}
        return sorted((after & before) - {node}, key=self.order.__getitem__), out


def reference_threshold(magnitude: Histogram) -> float:
    """The magnitude that half of the entries that are not 0 lie below."""
    pooled = magnitude.pooled()
    zeros = float(pooled.share_below(0.0))
    return float(pooled.quantile(zeros + (1 - zeros) * REFERENCE_SHARE))


def reachable(start: Node, following: Callable[[Node], Any]) -> set[Node]:
    """All nodes behind one, itself not among them."""
    seen: set[Node] = set()
    queue = [start]
    while queue:
        for node in following(queue.pop()):
            if node not in seen:
                seen.add(node)
                queue.append(node)
    return seen


def relative(changed: Tensor, value: Tensor) -> float | None:
    """The relative L2 error; None where it is no number."""
    size = float(torch.linalg.vector_norm(value.double()))
    error = float(torch.linalg.vector_norm(changed.double() - value.double()))
    return error / size if size and math.isfinite(error) else None


def first_tokens(batch: Any, most: int = 256) -> Any:
    """The first `most` tokens of a batch of token ids and what goes with them; else all of it.

    Cut only where every tensor is a whole-number table of one shape, `[batch, tokens]`.
    """
    tensors = [x for x in tree_leaves(batch_values(batch)) if isinstance(x, Tensor)]
    shapes = {tuple(x.shape) for x in tensors}
    if len(shapes) != 1 or any(x.is_floating_point() for x in tensors):
        return batch
    (shape,) = shapes
    if len(shape) != 2 or shape[0] * shape[1] <= most:
        return batch
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    tokens = min(shape[1], most)
    left = isinstance(mask, Tensor) and not bool(mask[:, 0].all())
    part = slice(-tokens, None) if left else slice(tokens)
    rows = slice(max(1, most // tokens))
    if isinstance(batch, Mapping):
        return {k: x[rows, part] if isinstance(x, Tensor) else x for k, x in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(x[rows, part] if isinstance(x, Tensor) else x for x in batch)
    return batch[rows, part]


def batch_values(batch: Any) -> Any:
    """A batch's values in a plain container."""
    return dict(batch) if isinstance(batch, Mapping) else batch
