"""Small helpers over FX nodes that every layer needs: values, names, user source lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta
from torch.utils._pytree import tree_flatten

# `getattr(L['self'], 'odd name')`, the innermost first
ODD_NAME = re.compile(
    r"""getattr\(((?:(?!getattr\().)*?),\ (?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\)""", re.S
)
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')


def fake_value(node: Node) -> Any:
    """What the node gave while tracing (fake tensors, SymInts, tuples of them)."""
    return node.meta.get("val")


def fake_tensors(node: Node) -> list[torch.Tensor]:
    """The tensors that a node gives, in order; empty if it gives none."""
    value = fake_value(node)
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [v for v in value if isinstance(v, torch.Tensor)]
    return []


def is_float(node: Node) -> bool:
    """Whether the node gives one floating tensor."""
    value = fake_value(node)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def calls(graph: Graph) -> Iterator[Node]:
    """All call_function nodes in order."""
    return (node for node in graph.nodes if node.op == "call_function")


def output_nodes(module: GraphModule) -> list[Any]:
    """What the graph returns, flattened; entries that are no nodes are kept as they are."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    leaves, _ = tree_flatten(output.args[0], is_leaf=lambda leaf: isinstance(leaf, Node))
    return leaves


def module_path(node: Node) -> str:
    """The innermost module that the node was traced in, e.g. `encoder.layer.3.attention`."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return clean_path(path)


def clean_path(path: str) -> str:
    """Dynamo's spelling of a module path as a user would write it.

    A name that is no word stands there as Python writes it, without its quotes: on one line.
    """
    before = ""
    while before != path:
        before, path = path, ODD_NAME.sub(r"\1.\2\3", path, count=1)
    path = re.sub(r"^L\['(\w+)'\]\.?|^L__self__\.?", "", path)
    path = re.sub(r"\.?__dict__\['_modules'\]\['(\w+)'\]", r".\1", path)
    path = re.sub(r"\._modules\['(\w+)'\]|\.?__getattr__\('(\w+)'\)", r".\1\2", path)
    path = re.sub(r"\[(\d+)\]", r".\1", path)
    return path.removeprefix("self.").strip(".")


def source_line(node: Node) -> str:
    """The line of the user's source that made the node, as `file:line in function`."""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    file, line, function = frames[-1]
    return f"{file}:{line} in {function}"


def retrace(
    function: Callable[..., Any],
    fakes: Sequence[Any],
    mode: FakeTensorMode,
    simpler: Mapping[Any, Callable[..., Any]] | None = None,
) -> GraphModule:
    """Trace a function over fake inputs into a pre-dispatch ATen graph.

    `simpler`: decompositions that are applied on the way.
    """
    table = dict(simpler or {})
    with mode, preserve_node_meta():
        traced = make_fx(function, table, pre_dispatch=True, tracing_mode="real")(*fakes)
    traced.graph.eliminate_dead_code(is_impure)
    plain_constants(traced)
    traced.recompile()
    return traced


def plain_constants(module: GraphModule) -> None:
    """Make a graph's constants, which it was given as buffers, plain attributes.

    Parameters and buffers are inputs here; the next compiler asks for the source of every other.
    """
    for name in list(module._buffers):
        setattr(module, name, module._buffers.pop(name))


def is_impure(node: Node) -> bool:
    """Nodes that must stay though nothing uses them."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return node.is_impure()
    if node.target is torch.ops.aten.dropout.default and not node.args[2]:
        return False  # it draws nothing
    return node.target._schema.is_mutable or node.is_impure()


def carry_over(
    source: GraphModule,
    target: GraphModule,
    sources: Sequence[tuple[Node, bool]] | None = None,
    added: int = 0,
) -> None:
    """Copy what Dynamo wrote: graph meta, parameter names, placeholders' sources and names.

    `sources`: the placeholder behind each one of the target, and whether the latter is a part of
    it; one beside the other if left out. A part has no source of its own, but is as static.
    `added`: how many placeholders the target has behind those, which come from nowhere.
    """
    target.meta.update(source.meta)
    for name in ("_param_name_to_source", "_backend_id"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    whole = ("example_value", "grapharg", "tensor_dict", "unbacked_bindings", "dynamo_source")
    behind = [(node, False) for node in placeholders(source)] if sources is None else sources
    there = placeholders(target)
    for new in there[len(there) - added :]:
        new._dynamo_source = None
    for (old, is_part), new in zip(behind, there[: len(there) - added], strict=True):
        for key in ("tensor_dict",) if is_part else whole:
            if key in old.meta:
                new.meta.setdefault(key, old.meta[key])
        for name in ("_dynamo_source", "_dynamo_static_input_type"):
            if hasattr(old, name):
                setattr(new, name, None if is_part else getattr(old, name))


def placeholders(module: GraphModule) -> list[Node]:
    """Graph inputs in order."""
    return [node for node in module.graph.nodes if node.op == "placeholder"]
