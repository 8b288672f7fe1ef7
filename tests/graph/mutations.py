"""What a person can get wrong while writing a rule: every answer of the protocol, changed.

A mutation knows no operator, so that a new rule is mutated like all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tokenpass.graph.axis import Factor, Label
from tokenpass.graph.call import Call
from tokenpass.graph.demand_lattice import EVERYTHING, NOTHING, Demand, Extent, Position
from tokenpass.graph.meaning import Meaning, Places, Tally
from tokenpass.graph.rule import Blocked, Rule, cut_places, join_demands
from tokenpass.graph.rules_apart import Factory, Pointwise
from tokenpass.graph.rules_layout import Layout

from .mutants import Mutation

OPERANDS = range(3)
TELL_EQUAL = (Pointwise, Layout, Factory)
"""The rules that tell along which dimensions entries are equal; no other promises it."""


def relabelled(change: Callable[[Call, Label, Label], Label]) -> Callable[..., Any]:
    """Changes every output's label; `change(call, label, fresh)`."""

    def infer(rule: Rule, call: Call) -> tuple[Label, ...]:
        labels = rule.infer(call)
        return tuple(change(call, label, call.fresh_label(at)) for at, label in enumerate(labels))

    return infer


def each_factor(change: Callable[[Factor], Factor]) -> Callable[[Label], Label]:
    """Changes every factor of a label."""
    return lambda label: tuple(tuple(change(factor) for factor in dim) for dim in label)


def turned(label: Label) -> Label:
    """Every dimension's factors at the neighbouring one."""
    return (*label[1:], *label[:1])


def of_axis(constant: bool) -> Callable[[Call, Label, Label], Label]:
    """Every axis replaced by one that is, or is not, known to be constant."""

    def change(call: Call, label: Label, fresh: Label) -> Label:
        def other(factor: Factor) -> Factor:
            if factor.axis.constant is constant:
                return factor
            new = call.fresh((factor.axis, constant), factor.axis.size, constant)
            return replace(factor, axis=new.axis)

        return each_factor(other)(label)

    return change


def summed(factor: Factor, extensive: bool) -> Factor:
    """A shortened factor whose merged tokens hold sums, or do not."""
    return replace(factor, extensive=extensive and factor.cut is not None)


INFER = {
    "loses its axes": relabelled(lambda call, label, fresh: fresh),
    "loses its cuts": relabelled(
        lambda call, label, fresh: each_factor(lambda f: replace(f, cut=None, extensive=False))(
            label
        )
    ),
    "axes at their neighbours": relabelled(lambda call, label, fresh: turned(label)),
    "factors in another order": relabelled(
        lambda call, label, fresh: tuple(dim[::-1] for dim in label)
    ),
    "forgets sums": relabelled(
        lambda call, label, fresh: each_factor(partial(summed, extensive=False))(label)
    ),
    "takes means for sums": relabelled(
        lambda call, label, fresh: each_factor(partial(summed, extensive=True))(label)
    ),
    "forgets that entries are equal": lambda rule, call: (
        relabelled(of_axis(constant=False))(rule, call)
        if isinstance(rule, TELL_EQUAL)
        else rule.infer(call)
    ),
    "takes entries for equal": relabelled(of_axis(constant=True)),
}


def retargeted(at: int, change: Callable[[Label, Label], Label]) -> Callable[..., Any]:
    """Changes what is asked of one operand; `change(asked, label that it has)`."""

    def targets(rule: Rule, call: Call, outs: tuple[Label, ...]) -> list[Label]:
        found = rule.targets(call, outs)
        if at < len(found):
            found[at] = change(found[at], call.operands[at].label)
        return found

    return targets


def first_step(factor: Factor) -> Factor:
    """Cut by the first of several reductions only."""
    cut = factor.cut
    while cut is not None and cut.parent is not None:
        cut = cut.parent
    return replace(factor, cut=cut)


def no_offer(asked: Label, label: Label) -> Label:
    """Nothing offered where the operand has no dimension, or nothing in it."""
    kept = asked[len(asked) - len(label) :]
    return tuple(dim if own else () for dim, own in zip(kept, label, strict=True))


TARGETS = {
    f"{name} of operand {at}": retargeted(at, change)
    for at in OPERANDS
    for name, change in (
        ("asks nothing", lambda asked, label: label),
        ("asks the first step only", lambda asked, label: each_factor(first_step)(asked)),
        ("asks the neighbour's cut", lambda asked, label: turned(asked)),
        ("offers nothing", no_offer),
    )
}


def all_cuts(call: Call) -> list[Blocked]:
    """Every shortened factor of every operand."""
    return [
        (at, place)
        for at, operand in enumerate(call.operands)
        for place in cut_places(operand, range(len(operand.label)))
    ]


def unblocked(at: int) -> Callable[..., Any]:
    """Forgets one operand."""
    return lambda rule, call: [found for found in rule.blocked(call) if found[0] != at]


BLOCKED = {
    "blocks nothing": lambda rule, call: [],
    "blocks everything": lambda rule, call: all_cuts(call),
    "blocks one place only": lambda rule, call: rule.blocked(call)[:1],
    **{f"does not block operand {at}": unblocked(at) for at in OPERANDS},
}
SUMMED = {
    "sums over nothing": lambda rule, call: [],
    "sums over everything": lambda rule, call: all_cuts(call),
}


def said(change: Callable[[Meaning], Meaning | None]) -> Callable[..., Any]:
    """Changes what is said of every output that has a meaning."""

    def meanings(rule: Rule, call: Call) -> tuple[Meaning | None, ...]:
        return tuple(known and change(known) for known in rule.meanings(call))

    return meanings


MEANINGS = {
    "says nothing": said(lambda known: None),
    "says it of the other output": lambda rule, call: rule.meanings(call)[::-1],
    "says what the operand does": lambda rule, call: tuple(
        known and call.operands[0].meaning for known in rule.meanings(call)
    ),
    "numbers other rows": said(
        lambda known: replace(known, into=known.into[::-1]) if isinstance(known, Places) else known
    ),
    "takes counts for totals": said(
        lambda known: replace(known, ends=not known.ends) if isinstance(known, Tally) else known
    ),
}
ROWS = {
    "uses any rows": lambda rule, call: True,
    "uses no rows": lambda rule, call: False,
}
SUMS = {
    "keeps all sums": lambda rule, call: True,
    "keeps no sums": lambda rule, call: False,
}


@dataclass(frozen=True, eq=False)
class Unsized:
    """A reduction of which the sizes are not known."""

    cut: Any
    sizes: None = None

    def weight(self, value: torch.Tensor, *where: Any) -> torch.Tensor:
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cut, name)


def without_sizes(call: Call) -> Callable[[Factor], Factor]:
    """The call's cuts without sizes; a cut that operands share stays shared."""
    known: dict[Any, Unsized] = {}

    def change(factor: Factor) -> Factor:
        if factor.cut is None:
            return factor
        return replace(factor, cut=known.setdefault(factor.cut, Unsized(factor.cut)))

    return change


def rerun(change: Callable[[Call], Call]) -> Callable[..., Any]:
    """Runs the call changed."""
    return lambda rule, call, outs, runner: rule.execute(change(call), outs, runner)


def on_labels(change: Callable[[Call], Callable[[Factor], Factor]]) -> Callable[..., Any]:
    """Runs the call on operands with other labels."""

    def changed(call: Call) -> Call:
        one = each_factor(change(call))
        return call.with_operands([replace(o, label=one(o.label)) for o in call.operands])

    return rerun(changed)


def swapped(call: Call) -> Call:
    """The first two operands in each other's place."""
    operands = call.operands
    return call.with_operands([*operands[1::-1], *operands[2:]])


EXECUTE = {
    "runs as captured": lambda rule, call, outs, runner: call.execute(),
    "runs for another shape": lambda rule, call, outs, runner: rule.execute(
        call, tuple(turned(label) for label in outs), runner
    ),
    "swaps operands": rerun(swapped),
    "knows no sizes": on_labels(without_sizes),
    "weighs sums": on_labels(lambda call: partial(summed, extensive=False)),
    "weighs no means": on_labels(lambda call: partial(summed, extensive=True)),
}


def demanded(change: Callable[[list[Demand], Demand], list[Demand]]) -> Callable[..., Any]:
    """Changes the demand on the operands; `change(demands, demand on the outputs)`."""
    return lambda rule, call, axis, out: change(rule.demand(call, axis, out), join_demands(out))


def at_operand(at: int, demand: Callable[[Demand], Demand]) -> Callable[..., Any]:
    """Changes the demand on one operand; `demand(demand on the outputs)`."""
    return demanded(lambda known, out: [demand(out) if i == at else d for i, d in enumerate(known)])


def shifted(demand: Demand) -> Demand:
    """The places after those that are read."""
    places = [Position(p.at + 1, p.rows) if isinstance(p.at, int) else p for p in demand.positions]
    return Demand(demand.extent, frozenset(places))


def other_extent(demand: Demand) -> Demand:
    """All tokens where a weighted mean is read, and the other way round."""
    other = {Extent.WEIGHTED: Extent.ALL, Extent.ALL: Extent.WEIGHTED}
    return Demand(other.get(demand.extent, demand.extent), demand.positions)


DEMAND = {
    **{f"needs nothing of operand {at}": at_operand(at, lambda out: NOTHING) for at in OPERANDS},
    **{f"needs what is read of operand {at}": at_operand(at, lambda out: out) for at in OPERANDS},
    **{f"needs all of operand {at}": at_operand(at, lambda out: EVERYTHING) for at in OPERANDS},
    "needs the places after": demanded(lambda known, out: [shifted(d) for d in known]),
    "takes a mean for a choice": demanded(lambda known, out: [other_extent(d) for d in known]),
}
READS = {"finds no positions": lambda rule, call, dim: None}
SLOTS = {
    "reads the first slots": lambda rule, call, dim, slots: rule.read_slots(
        call, dim, list(range(len(slots)))
    ),
    "reads slots in another order": lambda rule, call, dim, slots: rule.read_slots(
        call, dim, slots[::-1]
    ),
}
MUTATIONS = tuple(
    Mutation(name, question, change)
    for question, table in {
        "infer": INFER,
        "targets": TARGETS,
        "blocked": BLOCKED,
        "summed": SUMMED,
        "meanings": MEANINGS,
        "minds_rows": ROWS,
        "keeps_sums": SUMS,
        "execute": EXECUTE,
        "demand": DEMAND,
        "read_positions": READS,
        "read_slots": SLOTS,
    }.items()
    for name, change in table.items()
)
