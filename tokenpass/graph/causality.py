"""Whether a mask keeps later tokens from earlier ones: read off its values, not off its spelling.

    hidden[i, j]: query i may not look at key j
    one-way:      some i < j with hidden[i, j], not hidden[j, i], and j hidden from not every query

A window or a block structure hides both ways, padding hides a key from everyone, and a learnt bias
hides nothing: none of them promises that the future stays unseen. Only the mask's own operators are
run, on the call's real inputs. Where they cannot be run (their values come from the tokens
themselves, from a fake tensor, or through a write in place) the answer is that it may.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes

from tokenpass.graph.labels import Labels
from tokenpass.tracing import fake_value, is_float

aten = torch.ops.aten

CONTENT = frozenset(
    {
        aten.linear.default,
        aten.matmul.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten.addmm.default,
        aten.mm.default,
        aten.einsum.default,
        aten.conv1d.default,
        aten.conv2d.default,
        aten.scaled_dot_product_attention.default,
    }
)
"""Products: what depends on one is made from the tokens' content."""

CONDITIONS = frozenset(
    {
        aten.where.self,
        aten.where.ScalarSelf,
        aten.where.ScalarOther,
        aten.where.Scalar,
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
        aten.tril.default,
        aten.triu.default,
    }
)
"""Operators that put values in by a condition."""

HIDDEN = -5e3
"""Added to a score, this or less leaves exactly nothing behind the softmax (exp(-5e3) = 0)."""

MOST_ENTRIES = 1 << 27
"""Masks larger than this are not computed."""


@dataclass(eq=False)
class Examples:
    """The inputs of the call that is compiled, by placeholder, and what was computed of them."""

    given: Mapping[Node, Any] = field(default_factory=dict)
    data: frozenset[Node] = frozenset()
    _computed: dict[tuple[Node, bool], Any] = field(default_factory=dict)

    def values(self, node: Node, labels: Labels) -> Iterator[torch.Tensor]:
        """A value as this call has it, and as a call without any padding might have it.

        Raises `Unknown` where it cannot be computed.
        """
        yield self.compute(node, labels, False)
        if any(source in self.data for source in ancestors(node)):
            yield self.compute(node, labels, True)

    def compute(self, node: Node, labels: Labels, ones: bool) -> Any:
        """A node's value from real inputs; `ones`: integer and boolean data is all ones."""
        if (node, ones) in self._computed:
            return self._computed[node, ones]
        needed = with_writers(ancestors(node), labels)
        if any(n.target in CONTENT for n in needed):
            raise Unknown
        with torch.no_grad(), _disable_current_modes():
            for n in sorted(needed):
                if (n, ones) not in self._computed:
                    self._computed[n, ones] = self.run(n, ones)
        return self._computed[node, ones]

    def run(self, node: Node, ones: bool) -> Any:
        """One node, its inputs computed before."""
        if node.op == "placeholder":
            value = self.given.get(node)
            if isinstance(value, torch.SymInt):
                return value.node.hint
            if isinstance(value, torch.Tensor):
                if isinstance(value, FakeTensor) or value.is_meta:
                    raise Unknown
                plain = value.dtype == torch.bool or not value.is_floating_point()
                return torch.ones_like(value) if ones and plain and node in self.data else value
            if value is None:
                raise Unknown
            return value
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(node.graph.owning_module).clone()
        if node.op != "call_function":
            raise Unknown
        fake = fake_value(node)
        if isinstance(fake, torch.Tensor) and fake.numel() > MOST_ENTRIES:
            raise Unknown
        args, kwargs = map_arg(
            (node.args, node.kwargs), lambda source: self._computed[source, ones]
        )
        return node.target(*args, **kwargs)  # type: ignore[operator]


class Unknown(Exception):
    """A value that only the running model knows."""


def with_writers(needed: set[Node], labels: Labels) -> set[Node]:
    """Nodes, and what writes to their memory, in the whole graph; raises `Unknown` for inputs.

    A value that was computed for another mask before such a write may be stale, so all are run.
    """
    written = needed & labels.written.keys()
    while written:
        if any(n.op == "placeholder" for n in written):
            raise Unknown
        family = {
            n for n in labels.written if labels.written[n] in {labels.written[w] for w in written}
        }
        more = set().union(*(ancestors(n) for n in family)) - needed
        if not more:
            return needed
        needed = needed | more
        written = needed & labels.written.keys()
    return needed


def ancestors(node: Node) -> set[Node]:
    """A node and all that it is computed from."""
    seen, queue = {node}, [node]
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return seen


def may_be_causal(mask: Node, hides: bool, labels: Labels, examples: Examples) -> bool:
    """Whether a mask may hide later tokens from earlier ones and not the other way round.

    `hides`: True in the mask means hidden (else visible; added masks have large negative entries).
    """
    if not varies_along_queries(labels, mask):
        return False
    try:
        return any(one_way(hidden(v, hides)) for v in examples.values(mask, labels))
    except Unknown:
        return not learnt(mask)
    except Exception:  # a graph's operator on real data: whatever it raises, nothing is known
        return True


def varies_along_queries(labels: Labels, mask: Node) -> bool:
    """Whether a mask's second to last dimension holds different entries."""
    if len(labels[mask]) < 2:
        return False
    return any(not factor.axis.constant for factor in labels[mask][-2])


def learnt(mask: Node) -> bool:
    """Whether an added mask is content alone, which is finite and hides nothing.

    Nothing between the products of tokens and the mask may put values in by a condition.
    """
    fake = fake_value(mask)
    if not isinstance(fake, torch.Tensor) or not fake.is_floating_point():
        return False
    seen, queue, content = {mask}, [mask], False
    while queue:
        node = queue.pop()
        if node.target in CONTENT:
            content = True
        elif node.target in CONDITIONS:
            return False
        else:
            floats = [source for source in node.all_input_nodes if is_float(source)]
            new = [source for source in floats if source not in seen]  # indices hide nothing
            seen.update(new)
            queue += new
    return content


def hidden(mask: torch.Tensor, hides: bool) -> torch.Tensor:
    """`[.., queries, keys]`: True where a mask hides a key."""
    if mask.dtype == torch.bool:
        return mask if hides else ~mask
    return mask <= HIDDEN


def one_way(hidden: torch.Tensor) -> bool:
    """Whether some pair of tokens is hidden in one direction, the later from the earlier."""
    queries, keys = hidden.shape[-2:]
    if queries != keys:
        return bool(hidden.any())  # earlier keys come from a cache: not seen from here
    real = ~hidden.all(-2, keepdim=True)
    later = torch.ones(queries, keys, dtype=torch.bool, device=hidden.device).triu(1)
    return bool((hidden & ~hidden.mT & later & real).any())
