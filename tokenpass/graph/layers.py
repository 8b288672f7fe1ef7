"""Which attention layer a node belongs to, by the modules it was traced in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch.fx import Graph, Node

from tokenpass.graph.regions import AttentionRegion
from tokenpass.tracing import module_path


def layer_prefixes(regions: Sequence[AttentionRegion]) -> tuple[str, ...]:
    """For each region the shortest module path that no other region shares."""
    paths = [module_path(region.node).split(".") for region in regions]
    prefixes = []
    for at, path in enumerate(paths):
        others = [p for index, p in enumerate(paths) if index != at]
        for length in range(1, len(path) + 1):
            if all(other[:length] != path[:length] for other in others):
                prefixes.append(".".join(path[:length]))
                break
        else:
            prefixes.append("")
    return tuple(prefixes)


def numbered_prefixes(paths: Iterable[str]) -> tuple[str, ...]:
    """Layers by their numbers alone, e.g. `model.layers.0`: of the list that has most of them.

    For graphs in which no attention is recognised, as of one token without a cache.
    """
    lists: dict[str, set[int]] = {}
    for path in paths:
        parts = path.split(".")
        first = next((at for at, part in enumerate(parts) if part.isdecimal()), None)
        if first is not None:
            lists.setdefault(".".join(parts[:first]), set()).add(int(parts[first]))
    if not lists:
        return ()
    name = max(lists, key=lambda one: len(lists[one]))
    return tuple(f"{name}.{at}".removeprefix(".") for at in range(max(lists[name]) + 1))


def layer_of(node: Node, prefixes: Sequence[str]) -> int | None:
    """Index of the layer whose modules made a node; None outside all layers."""
    path = module_path(node)
    for at, prefix in enumerate(prefixes):
        if prefix and under(path, prefix):
            return at
    return None


def under(path: str, prefix: str) -> bool:
    """Whether a module path lies in a layer's."""
    return path == prefix or path.startswith(prefix + ".")


def costs_by_layer(
    graph: Graph,
    costs: dict[str, float],
    prefixes: Sequence[str],
    together: Callable[[Iterable[float]], float] = sum,
) -> tuple[list[float], float]:
    """Costs of each layer's nodes taken together, and of those outside all layers."""
    layers: list[list[float]] = [[0.0] for _ in prefixes]
    outside = [0.0]
    for node in graph.nodes:
        at = layer_of(node, prefixes)
        (outside if at is None else layers[at]).append(costs.get(node.name, 0.0))
    return [together(layer) for layer in layers], together(outside)
