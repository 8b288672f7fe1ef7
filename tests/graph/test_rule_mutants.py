"""Each rule broken in turn: at least one trial of its examples notices every mutant.

A mutant whose answers are those of the rule, in all trials, is no mutant: it is counted as equal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from tokenpass.graph.axis_rules import AXIS_RULES
from tokenpass.graph.rule import Rule

from .mutants import QUESTIONS, Mutant, WrongLine, attempt, broken, witness
from .mutations import MUTATIONS
from .rule_demand import check_demand
from .rule_examples import EXAMPLES
from .rule_harness import check, check_constants
from .rule_language import Example
from .rule_trial import CLAIMS, draw_trial

ROUNDS = 12
"""More are not tried on a mutant that answers otherwise and is not noticed."""

OTHERS = list({str(rule): rule for rule in AXIS_RULES.values()}.values())


def check_claim(claim: str, example: Example, target: Any, chance: random.Random) -> None:
    check(draw_trial(example, target, chance, claim))


CHECKS = [*(partial(check_claim, claim) for claim in CLAIMS), check_constants, check_demand]


def trials(target: Any, turn: int, share: int) -> Iterator[Callable[[], None]]:
    """One of `share` parts of the checks on every example; the parts take turns."""
    for place, example in enumerate(EXAMPLES[target]):
        for at, one in enumerate(CHECKS):
            if (place + at + turn) % share == 0:
                yield lambda seed=f"{turn} {place} {at}", one=one, example=example: one(
                    example, target, random.Random(seed)
                )


def fates(
    target: Any, mutants: Sequence[Mutant], monkeypatch: pytest.MonkeyPatch, rounds: int, share: int
) -> dict[Mutant, str]:
    """killed, equal or missed: what becomes of every mutant of an overload's rule."""
    rule, fate = AXIS_RULES[target], dict.fromkeys(mutants, "equal")

    def run(other: Rule, trial: Callable[[], None]) -> Any:
        with monkeypatch.context() as patch:
            patch.setitem(AXIS_RULES, target, other)
            return attempt(trial)

    for turn in range(ROUNDS):
        if turn >= rounds and "missed" not in fate.values():
            break
        for trial in trials(target, turn, share):
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
    assert asked - {"restored_first"} <= set(QUESTIONS)
    assert {mutation.question for mutation in MUTATIONS} == set(QUESTIONS)


@pytest.mark.parametrize("target", EXAMPLES, ids=str)
def test_every_broken_answer_is_noticed(target, monkeypatch):
    fate = fates(target, MUTATIONS, monkeypatch, rounds=1, share=3)
    assert not missed(fate)


@pytest.mark.slow
@pytest.mark.parametrize("target", EXAMPLES, ids=str)
def test_every_broken_answer_is_noticed_in_more_trials(target, monkeypatch):
    assert not missed(fates(target, MUTATIONS, monkeypatch, rounds=3, share=1))


@pytest.mark.slow
@pytest.mark.parametrize("target", EXAMPLES, ids=str)
def test_the_line_of_another_rule_is_noticed(target, monkeypatch):
    others = [WrongLine(rule) for rule in OTHERS if rule is not AXIS_RULES[target]]
    assert not missed(fates(target, others, monkeypatch, rounds=1, share=1))
