"""Each rule broken in turn: a trial of its examples, or a set of rows, notices every mutant.

A mutant whose answers are those of the rule, in all trials, is no mutant: it is counted as equal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from tokenpass.graph.axis_rules import AXIS_RULES, find_rule
from tokenpass.graph.rule import Rule
from tokenpass.tracing import calls

from .conftest import trace_graph
from .mutants import QUESTIONS, Mutant, WrongLine, attempt, broken, witness
from .mutations import MUTATIONS
from .row_harness import check_apart, check_refused, graph_of
from .row_spellings import SOUND, UNSOUND, X
from .rule_demand import check_demand
from .rule_examples import EXAMPLES
from .rule_harness import check, check_constants
from .rule_language import Example
from .rule_trial import CLAIMS, draw_trial

aten = torch.ops.aten
ROUNDS = 12
"""More are not tried on a mutant that answers otherwise and is not noticed."""

TARGETS = [*EXAMPLES, aten._grouped_mm.default, torch.ops.transformers.grouped_mm_fallback.default]
"""Products of groups claim nothing outside of a sort's rows: the spellings alone try them."""

OTHERS = list({str(rule): rule for rule in AXIS_RULES.values()}.values())


def check_claim(claim: str, example: Example, target: Any, chance: random.Random) -> None:
    check(draw_trial(example, target, chance, claim))


CHECKS = [*(partial(check_claim, claim) for claim in CLAIMS), check_constants, check_demand]


@pytest.fixture(scope="session")
def among_rows() -> Mapping[Any, list[Callable[[], None]]]:
    """Checks on spellings of experts, by the overloads that each of them calls."""
    index = torch.tensor([[7, 2, 3, 0], [0, 8, 1, 4], [5, 4, 6, 2]])
    found: dict[Any, list[Callable[[], None]]] = {}
    for function in (*SOUND, *UNSOUND):
        module = graph_of(trace_graph, function)
        one = partial(check_refused, module, function)
        if function in SOUND:
            one = partial(check_apart, module, function(X), index)
        for target in {node.target for node in calls(module.graph)}:
            found.setdefault(target, []).append(one)
    return found


def trials(
    target: Any, turn: int, share: int, others: Sequence[Callable[[], None]]
) -> Iterator[Callable[[], None]]:
    """One of `share` parts of the checks on every example, and all others; the parts take turns."""
    for place, example in enumerate(EXAMPLES.get(target, [])):
        for at, one in enumerate(CHECKS):
            if (place + at + turn) % share == 0:
                yield lambda seed=f"{turn} {place} {at}", one=one, example=example: one(
                    example, target, random.Random(seed)
                )
    yield from others


def fates(
    target: Any,
    mutants: Sequence[Mutant],
    monkeypatch: pytest.MonkeyPatch,
    rounds: int,
    share: int,
    others: Sequence[Callable[[], None]] = (),
) -> dict[Mutant, str]:
    """killed, equal or missed: what becomes of every mutant of an overload's rule."""
    rule, fate = find_rule(target), dict.fromkeys(mutants, "equal")
    assert rule is not None

    def run(other: Rule, trial: Callable[[], None]) -> Any:
        with monkeypatch.context() as patch:
            patch.setitem(AXIS_RULES, target, other)
            return attempt(trial)

    for turn in range(ROUNDS):
        if turn >= rounds and "missed" not in fate.values():
            break
        for trial in trials(target, turn, share, others if turn == 0 else ()):
            alive: set[Mutant] = set()
            left = [mutant for mutant, known in fate.items() if known != "killed"]
            failed = run(witness(rule, left, alive), trial)
            assert failed is None, failed
            for mutant in alive:
                noticed = run(broken(rule, mutant), trial) is not None
                fate[mutant] = "killed" if noticed else "missed"
    return fate


def missed(fate: dict[Mutant, str]) -> list[Mutant]:
    return [mutant for mutant, known in fate.items() if known == "missed"]


def test_every_question_is_mutated():
    """A new question of the protocol needs mutations."""
    asked = {name for name, value in vars(Rule).items() if callable(value) and name[0] != "_"}
    assert asked - {"restored_first"} <= set(QUESTIONS)  # which adds to `blocked`
    assert {mutation.question for mutation in MUTATIONS} == set(QUESTIONS)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_broken_answer_is_noticed(target, monkeypatch, among_rows):
    rows = among_rows.get(target, ())
    fate = fates(target, MUTATIONS, monkeypatch, rounds=1, share=3, others=rows)
    assert missed(fate) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_broken_answer_is_noticed_in_more_trials(target, monkeypatch, among_rows):
    rows = among_rows.get(target, ())
    assert not missed(fates(target, MUTATIONS, monkeypatch, rounds=3, share=1, others=rows))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_line_of_another_rule_is_noticed(target, monkeypatch, among_rows):
    others = [WrongLine(rule) for rule in OTHERS if rule is not find_rule(target)]
    rows = among_rows.get(target, ())
    assert not missed(fates(target, others, monkeypatch, rounds=1, share=1, others=rows))
