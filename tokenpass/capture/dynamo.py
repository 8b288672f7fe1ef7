"""Capture: the Dynamo graph becomes a pre-dispatch ATen graph with parameters kept as inputs.

Tracing an interpreter under `preserve_node_meta` keeps stack traces and module stacks; the example
inputs are made fake again with Dynamo's own symbolic contexts, so that its symbols (and guards)
stay the ones in use. What Dynamo wrote on the graph and its placeholders is carried over: without
it the next compiler sees no static inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._guards import TracingContext
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node

from tokenpass.capture.buffers import without_filled_buffers
from tokenpass.capture.normal_form import NORMAL_FORM
from tokenpass.capture.subclasses import OverParts, WrappedOutput, all_parts, is_wrapper, parts
from tokenpass.capture.writes import without_unseen_writes
from tokenpass.edits import Rejection
from tokenpass.tracing import calls, carry_over, placeholders, retrace, source_line


class CaptureRefused(Exception):
    """The graph has a part that capture is known to break; carries the rejection."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(str(rejection))
        self.rejection = rejection


@dataclass(frozen=True, eq=False)
class Captured:
    """A pre-dispatch ATen graph, the fake inputs it was traced with, and its data placeholders.

    `examples`: the call's own inputs by placeholder. `training`: gradients are recorded.
    `train_mode`: the first operator in training mode (dropout, batch norm), as (node, source line).
    `over_parts`: some inputs are wrapper subclasses, and the graph's placeholders are their parts.
    """

    module: GraphModule
    fakes: tuple[Any, ...]
    mode: FakeTensorMode
    data_inputs: tuple[Node, ...]
    examples: Mapping[Node, Any]
    training: bool
    train_mode: tuple[str, str] | None
    over_parts: bool = False


def capture(module: GraphModule, example_inputs: Sequence[Any]) -> Captured:
    """Trace a Dynamo graph; raises `CaptureRefused` for regions that must not be traced."""
    refuse_known_breakers(module)
    refuse_lost_gradients(module, example_inputs)
    mode, wholes = fake_inputs(module, example_inputs)
    fakes, given = all_parts(wholes), all_parts(example_inputs)
    try:
        traced = retrace(OverParts(module, wholes).run_parts, fakes, mode, NORMAL_FORM)
    except WrappedOutput:
        because = "an output is a tensor subclass, which the parts of the inputs do not make"
        raise CaptureRefused(Rejection("tensor_subclass", "output", because)) from None
    without_filled_buffers(traced)
    without_unseen_writes(traced)
    pairs = zip(placeholders(module), wholes, strict=True)
    sources = [(node, is_wrapper(whole)) for node, whole in pairs for _ in parts(whole)]
    carry_over(module, traced, sources)
    targets = placeholders(traced)
    data = [
        target
        for (source, _), target, example in zip(sources, targets, given, strict=True)
        if isinstance(example, torch.Tensor) and not is_static(source, example)
    ]
    examples = dict(zip(targets, given, strict=True))
    training = torch.is_grad_enabled() and any(
        isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs
    )
    return Captured(
        traced,
        tuple(fakes),
        mode,
        tuple(data),
        examples,
        training,
        train_mode(traced),
        over_parts=any(is_wrapper(whole) for whole in wholes),
    )


def train_mode(module: GraphModule) -> tuple[str, str] | None:
    """The first operator that acts as in training, with its source line."""
    for node in calls(module.graph):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        named = {a.name: at for at, a in enumerate(node.target._schema.arguments)}
        for name in ("train", "training", "dropout_p"):
            at = named.get(name)
            if at is None:
                continue
            value = node.args[at] if at < len(node.args) else node.kwargs.get(name)
            if value and not no_dropout(node):
                return node.name, source_line(node)
    return None


def no_dropout(node: Node) -> bool:
    """Dropout with probability zero, which does nothing in training either."""
    return bool(node.target is torch.ops.aten.dropout.default and node.args[1] == 0)


def refuse_known_breakers(module: GraphModule) -> None:
    """Functorch regions trace into graphs that fail later, and leave functorch's stack dirty."""
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", str(node.target))
        home = getattr(node.target, "__module__", "") or ""
        if home.startswith("torch._functorch") or "_vmap_" in name or "functorch" in name:
            raise CaptureRefused(refusal("functorch_region", node, name))
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureRefused(refusal("higher_order_operator", node, name))


def refuse_lost_gradients(module: GraphModule, example_inputs: Sequence[Any]) -> None:
    """A wrapper's parts are no leaves of its gradients: they would not reach it."""
    if not torch.is_grad_enabled():
        return
    for node, example in zip(placeholders(module), example_inputs, strict=True):
        if is_wrapper(example) and example.requires_grad:
            name, because = type(example).__name__, "needs gradients, which would not reach it"
            hint = "call the model under torch.no_grad()"
            raise CaptureRefused(
                Rejection("tensor_subclass", node.name, f"a {name} {because}", hint)
            )


def refusal(code: str, node: Node, name: str) -> Rejection:
    """A rejection of the whole graph because of one call."""
    return Rejection(
        code,
        node.name,
        f"{name} cannot be rewritten through an operator graph",
        "the graph runs dense",
        source_line(node),
    )


def fake_inputs(
    module: GraphModule, example_inputs: Sequence[Any]
) -> tuple[FakeTensorMode, list[Any]]:
    """Fake inputs in Dynamo's current fake mode, with its symbols; a mode of its own without it."""
    context = TracingContext.try_get()
    mode = context.fake_mode if context is not None else None
    for example in example_inputs:
        if mode is None and isinstance(example, FakeTensor):
            mode = example.fake_mode
    mode = mode or FakeTensorMode(allow_non_fake_inputs=False)
    known = context.tensor_to_context if context is not None else {}
    fakes = []
    for node, example in zip(placeholders(module), example_inputs, strict=True):
        if isinstance(example, FakeTensor):
            fakes.append(example)
        elif isinstance(example, torch.Tensor):
            symbolic = known.get(example)
            source = getattr(symbolic, "tensor_source", None)
            fakes.append(mode.from_tensor(example, symbolic_context=symbolic, source=source))
        else:
            fakes.append(node.meta.get("example_value", example))
    return mode, fakes


def is_static(node: Node, example: torch.Tensor) -> bool:
    """Whether an input is a parameter or buffer rather than data."""
    if isinstance(example, torch.nn.Parameter):
        return True
    described = node.meta.get("tensor_dict") or {}
    if "_dynamo_static_input_type" in described:
        return True
    source = getattr(node, "_dynamo_source", None)
    return ".parameters" in str(source) or "_buffers" in str(source) or "_parameters" in str(source)
