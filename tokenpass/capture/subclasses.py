"""Tensor subclasses that hold tensors (quantised weights, sharded ones): a graph is captured over
their parts, so that every value in it is a plain tensor.

    f(x, Int8Tensor(data, scale))   ->   g(x, data, scale)
    f(x, DTensor(local))            ->   g(x, local), the collectives among its operators

The weights stay what they are: parts are taken at each call, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


def is_wrapper(value: Any) -> bool:
    """Whether a value is a tensor that holds others and says which."""
    return isinstance(value, torch.Tensor) and is_traceable_wrapper_subclass(value)


def parts(value: Any) -> list[Any]:
    """The plain tensors in a value, a wrapper within a wrapper opened too; itself if it is none."""
    if not is_wrapper(value):
        return [value]
    names, _ = value.__tensor_flatten__()
    held = [getattr(value, name) for name in names]
    return [part for x in held if isinstance(x, torch.Tensor) for part in parts(x)]


def all_parts(values: Sequence[Any]) -> list[Any]:
    """The parts of all values, in order."""
    return [part for value in values for part in parts(value)]


def joined(like: Any, leaves: Iterator[Any]) -> Any:
    """A value like another one, made of the next parts; what is no tensor in it (the devices
    that share it) stays.
    """
    if not is_wrapper(like):
        return next(leaves)
    names, context = like.__tensor_flatten__()
    held = {name: getattr(like, name) for name in names}
    inner = {k: joined(x, leaves) if isinstance(x, torch.Tensor) else x for k, x in held.items()}
    return type(like).__tensor_unflatten__(inner, context, like.shape, like.stride())


def on_parts(run: Callable[..., Any]) -> Callable[..., Any]:
    """A callable over parts, called with the whole values."""

    def call(*inputs: Any) -> Any:
        return run(*all_parts(inputs))

    return call


class OverParts(Interpreter):
    """Runs a graph on the parts of its inputs; `likes` are the whole inputs, fake.

    A call that takes a wrapper is traced below dispatch, where the wrapper's own code runs: before
    dispatch the tracer would be asked first, and knows plain tensors alone.
    """

    def __init__(self, module: GraphModule, likes: Sequence[Any]) -> None:
        super().__init__(module)
        self.likes = likes

    def run_parts(self, *leaves: Any) -> Any:
        """The graph's outputs. Raises `WrappedOutput` where one of them is a wrapper."""
        given = iter(leaves)
        out = self.run(*(joined(like, given) for like in self.likes))
        if any(is_wrapper(leaf) for leaf in tree_leaves(out)):
            raise WrappedOutput
        return out

    def run_node(self, n: Node) -> Any:
        taken = any(is_wrapper(self.env[source]) for source in n.all_input_nodes)
        with below_dispatch() if taken else nullcontext():
            return super().run_node(n)


class WrappedOutput(Exception):
    """A graph hands out a tensor subclass, which parts alone do not make."""


def below_dispatch() -> Any:
    """The tracer at work now, seeing calls when they reach a backend."""
    mode = get_proxy_mode()
    if mode is None:
        return nullcontext()
    return type(mode)(mode.tracer, "real")
