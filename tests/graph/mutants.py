"""Rules broken in one answer, or replaced by another rule, and how to know that it matters.

`broken` is a rule with one mutation; `witness` is the rule as it is, which notes the mutants that
would have answered otherwise than it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tokenpass.graph.axis import Axis, Factor, Label, factors
from tokenpass.graph.call import Call, Operand
from tokenpass.graph.row_sets import Fewer
from tokenpass.graph.rule import Rule, summed_places

QUESTIONS = (
    "infer",
    "targets",
    "blocked",
    "summed",
    "meanings",
    "minds_rows",
    "keeps_sums",
    "execute",
    "demand",
    "read_positions",
    "read_slots",
)


@dataclass(frozen=True)
class Mutation:
    """`change(rule, *asked)` answers `question` in the rule's place."""

    name: str
    question: str
    change: Callable[..., Any]

    @property
    def questions(self) -> tuple[str, ...]:
        """What is answered otherwise."""
        return (self.question,)

    def answer(self, rule: Rule, question: str, *asked: Any) -> Any:
        """What the broken rule answers to any question."""
        if question == self.question:
            return self.change(rule, *asked)
        return getattr(rule, question)(*asked)


@dataclass(frozen=True)
class WrongLine:
    """Another rule of the table stands where the overload's own should."""

    other: Rule

    @property
    def questions(self) -> tuple[str, ...]:
        """What may be answered otherwise."""
        return QUESTIONS

    def answer(self, rule: Rule, question: str, *asked: Any) -> Any:
        """What the other rule answers."""
        return getattr(self.other, question)(*asked)


Mutant = Mutation | WrongLine


def answering(rule: Rule, answer: Callable[..., Any]) -> Rule:
    """The rule with `answer(question, *asked)` in the place of its methods."""

    def method(question: str) -> Callable[..., Any]:
        return lambda self, *asked: answer(question, *asked)

    kind = type(rule)
    methods = {question: method(question) for question in QUESTIONS if hasattr(kind, question)}
    out = object.__new__(type(kind.__name__, (kind,), methods))
    out.__dict__.update(rule.__dict__)
    return out


def broken(rule: Rule, mutant: Mutant) -> Rule:
    """The rule as the mutant has it."""
    if isinstance(mutant, WrongLine):
        return mutant.other
    return answering(rule, partial(mutant.answer, rule))


def witness(rule: Rule, mutants: Sequence[Mutant], reached: set[Mutant]) -> Rule:
    """The rule as it is; mutants that would have answered otherwise are noted in `reached`."""

    def answer(question: str, *asked: Any) -> Any:
        found = attempt(getattr(rule, question), *asked)
        said = heard(question, asked, found)
        for mutant in mutants:
            if mutant not in reached and question in mutant.questions:
                with undone(asked[0]):
                    other = attempt(mutant.answer, rule, question, *asked)
                if not same_answer(said, heard(question, asked, other)):
                    reached.add(mutant)
        if isinstance(found, Exception):
            raise found
        return found

    return answering(rule, answer)


@contextmanager
def undone(call: Call) -> Iterator[None]:
    """What is asked inside joins and makes no axes."""
    fresh = dict(call.table._fresh)
    axes = {factor.axis for operand in call.operands for factor in factors(operand.label)}
    joined = {axis: axis.joined for axis in {*axes, *fresh.values(), *(a.root for a in axes)}}
    yield
    call.table._fresh = fresh
    for axis, other in joined.items():
        axis.joined = other


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, or the exception that it raises."""
    try:
        return function(*args)
    except Exception as error:
        return error


def heard(question: str, asked: tuple[Any, ...], answer: Any) -> Any:
    """What the asker makes of an answer: names of new axes and idle targets do not matter."""
    if isinstance(answer, Exception):
        return answer
    if question == "infer":
        return named_axes(asked[0], answer)
    if question == "targets":
        return [moves(o, t) for o, t in zip(asked[0].operands, answer, strict=False)]
    if question == "keeps_sums":
        return answer and any(summed_places(operand.label) for operand in asked[0].operands)
    if question in ("blocked", "summed"):
        return bool(answer) if among_rows(asked[0]) else set(answer)
    return answer


def among_rows(call: Call) -> bool:
    """Whether a set of rows asks: the first objection is enough for it."""
    return any(
        isinstance(factor.cut, Fewer)
        for operand in call.operands
        for factor in factors(operand.label)
    )


def named_axes(call: Call, labels: tuple[Label, ...]) -> Any:
    """Labels with the axes that no operand has named by their order; sums need sizes."""
    old = {factor.axis.root for operand in call.operands for factor in factors(operand.label)}
    new: dict[Axis, int] = {}

    def name(factor: Factor) -> Any:
        root, size = factor.axis.root, str(factor.axis.size)
        known = root if root in old else (new.setdefault(root, len(new)), size)
        sums = factor.extensive and getattr(factor.cut, "sizes", None) is not None
        return known, factor.axis.constant, factor.cut, sums

    return [[[name(factor) for factor in dim] for dim in label] for label in labels]


def moves(operand: Operand, target: Label) -> Any:
    """How an operand has to be shortened; where that takes a batch, what it is offered too."""
    skip = len(target) - len(operand.label)
    found = [
        (at, place, goal.cut)
        for at, (dim, goals) in enumerate(zip(operand.label, target[skip:], strict=False))
        for place, (factor, goal) in enumerate(zip(dim, goals, strict=False))
        if goal.cut is not None and goal.cut is not factor.cut
    ]
    return found, any(cut.per_sample for _, _, cut in found) and target


def same_answer(left: Any, right: Any) -> bool:
    """Whether two answers are the same to whoever asked."""
    if isinstance(left, Exception) or isinstance(right, Exception):
        return type(left) is type(right)
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        alike = left.shape == right.shape and left.dtype == right.dtype
        return alike and torch.equal(left.nan_to_num(), right.nan_to_num())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        pairs = zip(left, right, strict=False)
        return len(left) == len(right) and all(same_answer(a, b) for a, b in pairs)
    return bool(left == right)
