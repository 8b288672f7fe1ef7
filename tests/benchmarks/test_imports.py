"""Import costs under invented times, and one real child."""

import pytest

from benchmarks.imports import VARIANTS, in_a_child, measure

COSTS = {"torch": 2.0, "tokenpass": 2.01, "dynamo": 3.0, "backend": 3.4}


def test_costs_are_differences_within_a_round():
    load = iter(range(1000))

    def once(name):
        # every call is slower than the one before, as on a machine that fills up
        drift = next(load) * 1e-6
        return 3 * COSTS[name] + drift, COSTS[name] + drift

    found = {cost.imported: cost for cost in measure(5, once=once)}
    assert {name: cost.over for name, cost in found.items()} == {
        "tokenpass": "torch",
        "dynamo": "torch",
        "backend": "dynamo",
    }
    assert found["tokenpass"].cpu_ms == pytest.approx(10, abs=0.1)
    assert found["tokenpass"].wall_ms == pytest.approx(30, abs=0.1)
    assert found["backend"].cpu_ms == pytest.approx(400, abs=0.1)
    assert found["backend"].low <= found["backend"].cpu_ms <= found["backend"].high
    assert all(cost.rounds == 5 for cost in found.values())


def test_the_first_round_is_not_counted_and_orders_differ():
    calls = []

    def once(name):
        calls.append(name)
        return (1.0, 1.0) if len(calls) > len(VARIANTS) else (99.0 * len(calls),) * 2

    assert all(cost.cpu_ms == 0.0 for cost in measure(6, once=once))
    rounds = [tuple(calls[at : at + 4]) for at in range(0, len(calls), 4)]
    assert len(rounds) == 7 and all(set(names) == set(VARIANTS) for names in rounds)
    assert len(set(rounds)) > 1


def test_a_child_says_its_seconds():
    wall, cpu = in_a_child("torch")
    assert cpu > 0 and 0 < wall < 600


def test_a_failing_import_is_an_error(monkeypatch):
    monkeypatch.setattr("benchmarks.imports.VARIANTS", {"bad": "import no_such_module"})
    with pytest.raises(RuntimeError, match="no_such_module"):
        in_a_child("bad")
