"""Values that are one number in most places: routers that choose few of many experts.

    relu(z)                         0 in half of the places (nothing being known of z)
    scatter(zeros, topk indices)    0 in all but k of E places
    softmax(masked with -inf)       0 where it is masked
    norm(x), expand(x), x * s       0 where x is 0

Facts by rules over single operators, backwards from a value. Elementwise operators need none: the
expression is evaluated with what is known (`pointwise.known_value`). How often is an expectation,
for costs alone; that the value follows from its source's is certain, the others being finite.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from tokenpass.graph.call import bind
from tokenpass.graph.pointwise_reader import (
    COPIES,
    FILLS,
    FUNCTIONS,
    NotPointwise,
    PointwiseReader,
)
from tokenpass.ops.pointwise import Call, Expression, Input, Number, known_value, parts
from tokenpass.tracing import fake_value, is_float

aten = torch.ops.aten

UNKNOWN_SHARE = 0.5
"""Share of places where a value is above another, where nothing is known of either."""

MOST_STEPS = 48
"""Operators that are looked through, one behind the other."""


@dataclass(frozen=True)
class Frequent:
    """A number that a value has in all but a share `density` of its places, as is expected."""

    value: float
    density: float


Facts = tuple[Frequent, ...]


@dataclass(frozen=True, eq=False)
class Search:
    """What is known by now, and how many operators may still be looked through."""

    known: dict[Node, Facts]
    steps: int

    def deeper(self) -> Search:
        """The same one operator further back."""
        return Search(self.known, self.steps - 1)


def frequent(node: Any, look: Search | None = None) -> Facts:
    """What is known of a value, a number once at most; truth is 1, falsehood 0."""
    look = Search({}, MOST_STEPS) if look is None else look
    if not isinstance(node, Node) or node.op != "call_function" or not look.steps:
        return ()
    if not isinstance(fake_value(node), torch.Tensor):
        return ()
    if node not in look.known:
        look.known[node] = facts_of_call(node, look.deeper())
    return look.known[node]


def facts_of_call(node: Node, look: Search) -> Facts:
    """What the rules say of a call's value."""
    if node.target is operator.getitem:
        cut = node.args[0]
        known = isinstance(cut, Node) and getattr(cut.target, "overloadpacket", None) in CUTS
        return frequent(cut.args[0], look) if known else ()  # type: ignore[union-attr]
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None:
        return ()
    given = bind(node.target, node.args, node.kwargs)
    if node.target in FILLS:
        value = FILLS[node.target](given)
        return sparsest([Frequent(float(value), 0.0)]) if isinstance(value, int | float) else ()
    rule = RULES.get(packet)
    found = [] if rule is None else rule(node, given, look)
    if node.target in FUNCTIONS and is_float(node):
        found = [*found, *elementwise(node, look)]
    return sparsest(found)


def sparsest(found: Iterable[Frequent]) -> Facts:
    """For each number the fact that says most; none that says nothing."""
    best: dict[float, Frequent] = {}
    for one in found:
        if math.isnan(one.value) or one.density >= 1:
            continue
        if one.value not in best or one.density < best[one.value].density:
            best[one.value] = one
    return tuple(best.values())


def elementwise(node: Node, look: Search) -> list[Frequent]:
    """A call's expression, evaluated with every fact about what it reads."""
    shape = fake_value(node).shape
    if not shape or not isinstance(shape[-1], int):
        return []
    reader = PointwiseReader(math.prod(shape[:-1]), shape[-1])
    try:
        expression = reader.read(node)
    except NotPointwise:
        return []
    if isinstance(expression, Input):
        return []
    found: list[Frequent] = []
    for part in dict.fromkeys(parts(expression)):
        for fact in part_facts(part, reader.inputs, look):
            value = known_value(expression, {part: fact.value})
            if value is not None:
                found.append(Frequent(value, fact.density))
    return found


def part_facts(part: Expression, inputs: list[Node], look: Search) -> Facts:
    """What is known of a part of an expression by itself."""
    if isinstance(part, Input):
        return frequent(inputs[part.index], look)
    if isinstance(part, Call) and is_zero_on_interval(part):
        return (Frequent(0.0, UNKNOWN_SHARE),)
    return ()


def is_zero_on_interval(part: Call) -> bool:
    """Whether a function maps whole intervals to 0."""
    zero = [isinstance(a, Number) and a.value == 0.0 for a in part.arguments]
    match part.function:
        case "relu":
            return True
        case "maximum" | "minimum":
            return any(zero)
        case "clamp":
            return zero[1] or zero[2]
        case "where_gt":
            return zero[2] or zero[3]
    return False


Rule = Callable[[Node, dict[str, Any], Search], list[Frequent]]


def arranged(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """x in other places, some of them left out or repeated."""
    return list(frequent(given.get("self", given.get("input")), look))


def cast(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """x in another type, which has the number."""
    floating = is_float(node)
    kept = (0.0, 1.0, math.inf, -math.inf) if floating else (0.0, 1.0)
    return [f for f in frequent(given["self"], look) if f.value in kept]


def normed(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """x s w, s from all of x: 0 where x is 0."""
    return [f for f in frequent(given["input"], look) if f.value == 0]


def times(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """x y, of numbers or truths: 0 where one of them is 0."""
    both = [*frequent(given["self"], look), *frequent(given["other"], look)]
    return [f for f in both if f.value == 0]


def negated(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """not x, of truths."""
    if fake_value(node).dtype is not torch.bool:
        return []
    return [Frequent(float(f.value == 0), f.density) for f in frequent(given["self"], look)]


def compared(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """x > y, of computed numbers: true in half of the places, and false in half."""
    sides = [one for one in (given["self"], given["other"]) if isinstance(one, Node)]
    if not all(is_float(one) and fake_value(one).dim() for one in sides):
        return []
    return [Frequent(0.0, UNKNOWN_SHARE), Frequent(1.0, UNKNOWN_SHARE)]


def exponentials(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """exp(x) / sum exp(x): 0 where x is minus infinity, nowhere else."""
    return [Frequent(0.0, f.density) for f in frequent(given["self"], look) if f.value == -math.inf]


def scattered(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """x with some entries of a dimension written to or added to; the others stay."""
    index, value, dim = given["index"], fake_value(node), given["dim"]
    if not isinstance(index, Node) or not value.dim() or not fake_value(index).dim():
        return []
    few, all_ = fake_value(index).shape[dim], value.shape[dim]
    if not isinstance(few, int) or not isinstance(all_, int):
        return []
    return [
        Frequent(f.value, f.density + few / max(all_, 1)) for f in frequent(given["self"], look)
    ]


def one_of_many(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """1 in one of so many places."""
    classes = fake_value(node).shape[-1]
    return [Frequent(0.0, 1 / classes)] if isinstance(classes, int) and classes else []


def summed(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """A sum, a mean, a maximum or "any" over dimensions: 0 where all terms are."""
    dims, shape = given.get("dim"), fake_value(given["self"]).shape
    dims = [dims] if isinstance(dims, int) else dims or range(len(shape))
    terms = math.prod(shape[dim] for dim in dims)
    if not isinstance(terms, int):
        return []
    return [Frequent(0.0, terms * f.density) for f in frequent(given["self"], look) if not f.value]


def replaced(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """v where the mask is true, x elsewhere."""
    return chosen(given["mask"], given["value"], given["self"], look)


def selected(node: Node, given: dict[str, Any], look: Search) -> list[Frequent]:
    """x where the condition is true, y elsewhere."""
    return chosen(given["condition"], given["self"], given["other"], look)


def chosen(mask: Any, first: Any, second: Any, look: Search) -> list[Frequent]:
    """One value where a mask is true, another where it is false; one of them a number."""
    found: list[Frequent] = []
    for truth, value in ((1.0, first), (0.0, second)):
        number = constant_of(value, look)
        if number is not None:
            found += [Frequent(number, f.density) for f in frequent(mask, look) if f.value == truth]
    return found


def constant_of(value: Any, look: Search) -> float | None:
    """The number that a value is everywhere; None where it is not one."""
    if isinstance(value, int | float):
        return float(value)
    return next((f.value for f in frequent(value, look) if f.density == 0), None)


CUTS = frozenset({aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split})

ARRANGED = (
    *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.unsqueeze),
    *(aten.squeeze, aten.expand, aten.permute, aten.transpose, aten.t, aten.movedim),
    *(aten.repeat, aten.repeat_interleave, aten.slice, aten.select, aten.narrow),
)

RULES: Mapping[Any, Rule] = {
    **dict.fromkeys(ARRANGED, arranged),
    **dict.fromkeys(COPIES, cast),
    aten.rms_norm: normed,
    aten.mul: times,
    aten.bitwise_and: times,
    aten.__and__: times,
    aten.logical_and: times,
    aten.bitwise_not: negated,
    aten.logical_not: negated,
    **dict.fromkeys((aten.gt, aten.ge, aten.lt, aten.le), compared),
    aten.softmax: exponentials,
    aten._softmax: exponentials,
    **dict.fromkeys((aten.scatter, aten.scatter_add, aten.scatter_reduce), scattered),
    aten.one_hot: one_of_many,
    **dict.fromkeys((aten.sum, aten.mean, aten.amax, aten.any), summed),
    aten.masked_fill: replaced,
    aten.where: selected,
}
"""What single operators do to such values; the next one is one entry. None keeps them otherwise."""
