"""A captured graph as JSON and back: loading a file runs nothing that it names.

Operators are looked up by their overload's name among ATen's and tokenpass's own; any other name,
and operators that open files, are refused.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from tokenpass import ops
from tokenpass.errors import UserError
from tokenpass.tracing import fake_tensors, module_path

NAMESPACES = ("aten", ops.NAMESPACE)
GETITEM = "_operator.getitem"
TARGET = re.compile(r"(?P<space>[a-z]+)\.(?P<name>\w+)\.(?P<overload>\w+)", re.ASCII)
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
KINDS = ("placeholder", "get_attr", "call_function", "output")

WORDS: dict[str, tuple[type, ...]] = {
    "dtype": (torch.dtype,),
    "layout": (torch.layout,),
    "memory_format": (torch.memory_format,),
}
"""Values of torch that are written as `torch.<name>`, by the key that they are written under."""


# a graph as JSON -------------------------------------------------------------------------------


def graph_to_json(module: GraphModule) -> list[dict[str, Any]]:
    """Every node: name, op, target, arguments, and for people its shapes and dtypes.

    Raises `UserError` for graphs with dynamic sizes or targets that could not be loaded.
    """
    return [node_to_json(node) for node in module.graph.nodes]


def node_to_json(node: Node) -> dict[str, Any]:
    """One node."""
    target = str(node.target)
    if node.op == "call_function":
        target = GETITEM if node.target is operator.getitem else str(node.target)
        find_target(target)
    tensors = fake_tensors(node)
    return {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": [to_json(arg) for arg in node.args],
        "kwargs": {key: to_json(value) for key, value in node.kwargs.items()},
        "shapes": [[size_to_json(size) for size in t.shape] for t in tensors],
        "dtypes": [str(t.dtype) for t in tensors],
        "module": module_path(node),
    }


def size_to_json(size: Any) -> int:
    """A size that is a number."""
    if not isinstance(size, int):
        raise UserError("a bundle holds graphs without dynamic sizes: compile with dynamic=False")
    return size


def to_json(value: Any) -> Any:
    """An argument: plain values as they are, all others as an object with one key."""
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, float):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        items = [to_json(item) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, slice):
        return {"slice": [to_json(x) for x in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for key, kinds in WORDS.items():
        if isinstance(value, kinds):
            return {key: str(value)}
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        size_to_json(value)
    raise UserError(f"a bundle cannot hold an argument of type {type(value).__name__}")


# and back --------------------------------------------------------------------------------------


def graph_from_json(
    data: Sequence[Mapping[str, Any]], constants: Mapping[str, Tensor]
) -> GraphModule:
    """The graph of `graph_to_json`; `constants` are the tensors that its attributes name.

    Raises `UserError` (a `ValueError`) for whatever `graph_to_json` does not write.
    """
    graph, nodes = Graph(), dict[str, Node]()
    for line in data:
        try:
            add_node(graph, line, nodes, constants)
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"bundle: a node of the graph cannot be read: {error!r}") from error
    if [line["op"] for line in data].count("output") != 1:
        raise UserError("bundle: the graph has no output, or several")
    return GraphModule(dict(constants), graph)


def add_node(
    graph: Graph, line: Mapping[str, Any], nodes: dict[str, Node], constants: Mapping[str, Tensor]
) -> None:
    """Append one node."""
    op, name, target = line["op"], line["name"], line["target"]
    if op not in KINDS:
        raise UserError(f"bundle: {op!r} is no kind of node that a bundle may hold")
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in nodes:
        raise UserError(f"bundle: {name!r} cannot name a node")
    if op == "call_function":
        target = find_target(target)
    elif not isinstance(target, str) or not NAME.fullmatch(target):
        raise UserError(f"bundle: {target!r} names no input or constant")
    elif op == "get_attr" and target not in constants:
        raise UserError(f"bundle: the constant {target!r} is missing")
    args = tuple(from_json(arg, nodes) for arg in line["args"])
    kwargs = {str(key): from_json(value, nodes) for key, value in line["kwargs"].items()}
    nodes[name] = node = graph.create_node(op, target, args, kwargs, name)
    if node.name != name:
        raise UserError(f"bundle: {name!r} cannot name a node")
    path = line.get("module", "")
    if path:
        node.meta["nn_module_stack"] = {str(path): (str(path), "")}


def find_target(text: Any) -> Callable[..., Any]:
    """The operator that a name stands for; raises `UserError` for all that is not allowed."""
    if text == GETITEM:
        return operator.getitem
    match = TARGET.fullmatch(text) if isinstance(text, str) else None
    if match is None or match["space"] not in NAMESPACES:
        raise UserError(f"bundle: {text!r} is no operator of {' or '.join(NAMESPACES)}")
    packet = getattr(getattr(torch.ops, match["space"]), match["name"], None)
    known = packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ()
    if packet is None or match["overload"] not in known:
        raise UserError(f"bundle: this PyTorch has no operator {text!r}")
    found = getattr(packet, match["overload"])
    if any("file" in argument.name for argument in found._schema.arguments):
        raise UserError(f"bundle: {text!r} opens files, which a bundle may not")
    return found


def from_json(value: Any, nodes: Mapping[str, Node]) -> Any:
    """An argument of `to_json`."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list):
        return [from_json(item, nodes) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise UserError(f"bundle: {value!r} is no argument")
    ((key, inner),) = value.items()
    if key == "node":
        return nodes[inner]
    if key == "float":
        return float(inner)
    if key == "tuple":
        return tuple(from_json(item, nodes) for item in inner)
    if key == "slice":
        return slice(*(from_json(item, nodes) for item in inner))
    if key == "device":
        return torch.device(inner)
    if key in WORDS:
        found = getattr(torch, inner.removeprefix("torch."))
        if isinstance(found, WORDS[key]):
            return found
    raise UserError(f"bundle: {value!r} is no argument")


class FakeValues(Interpreter):
    """Runs a graph over fake inputs and writes what each node gives on it, as tracing does."""

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            n.meta["val"] = value
        return value
