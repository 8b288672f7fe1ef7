"""Valid in, valid out: a rewritten graph is well formed and gives what the captured one gives."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from tokenpass.errors import InternalError
from tokenpass.tracing import fake_value, output_nodes


def verify_rewrite(
    before: GraphModule, after: GraphModule, may_shrink: frozenset[Node] = frozenset()
) -> None:
    """Checks inputs, outputs and form; `may_shrink` are outputs of `before` that may be shorter.

    Raises `InternalError` that names the output. Dynamic sizes are compared by their value in the
    example call, so that no guard is added, and must stay dynamic.
    """
    try:
        after.graph.lint()
    except RuntimeError as error:
        raise InternalError(f"rewrite: the graph is malformed: {error}") from error
    old, new = output_nodes(before), output_nodes(after)
    if len(old) != len(new):
        raise InternalError(f"rewrite: {len(new)} outputs instead of {len(old)}")
    for at, (one, other) in enumerate(zip(old, new, strict=True)):
        if one in may_shrink:
            continue
        expected, found = described(one), described(other)
        if expected != found:
            name = one.name if isinstance(one, Node) else repr(one)
            raise InternalError(f"rewrite: output {at} ({name}) is {found} instead of {expected}")


def described(leaf: Any) -> str:
    """Shape, dtype and device of an output, or what it is if it is no tensor."""
    value = fake_value(leaf) if isinstance(leaf, Node) else leaf
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(told(size) for size in value.shape)
        return f"{value.dtype} [{sizes}] on {value.device}"
    if isinstance(value, int | torch.SymInt):
        return f"integer {told(value)}"
    return type(value).__name__


def told(size: int | torch.SymInt) -> str:
    """A size as the number it had in the example call, and whether other calls may differ."""
    if not isinstance(size, torch.SymInt):
        return str(size)
    return f"{size.node.hint}{' (dynamic)' if size.node.expr.free_symbols else ''}"
