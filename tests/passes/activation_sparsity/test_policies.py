"""Every policy's contract, and each against a slow one from raw samples."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenpass.passes.activation_sparsity.policies import POLICIES, Policy
from tokenpass.statistics.histogram import Histogram

ENTRIES, ROWS = 40, 1500
SHARES = (0.05, 0.3, 0.5, 0.8)
BIN = 0.04
"""Thresholds are read off bins a fourth of an octave wide, in which logarithms are even."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def samples(seed: int = 0) -> dict[str, Tensor]:
    """What a projection and a gated MLP read: entries of unlike sizes, rows with few outliers."""
    scale = torch.linspace(0.1, 3, ENTRIES)
    up = drawn(ROWS, ENTRIES, seed=seed + 1) * scale.flip(0)
    gate = torch.nn.functional.silu(drawn(ROWS, ENTRIES, seed=seed + 2) * 2)
    return {"x": drawn(ROWS, ENTRIES, seed=seed) * scale, "gate": gate, "up": up}


NORMS = torch.linspace(2, 0.5, ENTRIES)


def signals(policy: Policy, share: float, seed: int = 0) -> dict[str, Any]:
    raw = samples()
    known: dict[str, Any] = {
        "magnitude": Histogram.of(raw["x"]),
        "gate": Histogram.of(raw["gate"]),
        "up": Histogram.of(raw["up"]),
        "prompt": counts(raw["gate"]).float(),
        "column_norms": NORMS,
        "values": raw["x"][:3],
        "entries": ENTRIES,
        "seed": seed,
        "sparsity": share,
    }
    return {name: known[name] for name in policy.signals}


def counts(gate: Tensor) -> Tensor:
    """How often each entry is among a row's ten largest."""
    return torch.zeros(ENTRIES, dtype=torch.int64).scatter_add_(
        0, gate.topk(10).indices.flatten(), torch.ones(ROWS * 10, dtype=torch.int64)
    )


def named(name: str) -> Policy:
    return next(policy for policy in POLICIES if policy.name == name)


def limits(name: str, share: float, **other: Any) -> Tensor:
    policy = named(name)
    return policy.threshold(**(signals(policy, share) | other))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_contract(policy: Policy) -> None:
    found = [policy.threshold(**signals(policy, share)) for share in SHARES]
    for one, share in zip(found, SHARES, strict=True):
        assert one.dtype == torch.float32 and one.shape in ((1,), (ENTRIES,))
        assert not one.isnan().any()
        assert (one >= 0).all() or policy.by_prompt or policy.name == "random"
        assert torch.equal(one, policy.threshold(**signals(policy, share)))
    for milder, stronger in pairwise(found):
        assert (milder <= stronger).all() and not torch.equal(milder, stronger)
    assert policy.place in ("inputs", "neurons") and 0 < policy.highest < 1


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["teal", "wina", "cats", "chess"])
def test_as_much_is_left_out_of_fresh_samples(name: str, share: float) -> None:
    value = samples(seed=70)["gate" if named(name).place == "neurons" else "x"]
    left_out = float((value.abs() <= limits(name, share)).float().mean())
    # of silu's values many are about its least one: what is even within a bin is not there
    assert left_out == pytest.approx(share, abs=0.06 if name == "cats" else 0.015)


@pytest.mark.parametrize("name", ["griffin", "core_matching", "random"])
@pytest.mark.parametrize("share", [0.0, *SHARES, 0.999])
def test_fixed_sets_keep_their_share(name: str, share: float) -> None:
    found = limits(name, share)
    assert int((found == -1).sum()) == max(1, round((1 - share) * ENTRIES))
    assert ((found == -1) | found.isposinf()).all()


def sorted_at(values: Tensor, share: float) -> float:
    """The value that a share of all is not above."""
    ordered = sorted(values.flatten().tolist())
    return ordered[max(0, round(share * len(ordered)) - 1)]


@pytest.mark.parametrize("share", SHARES)
def test_teal(share: float) -> None:
    assert float(limits("teal", share)) == pytest.approx(
        sorted_at(samples()["x"].abs(), share), rel=BIN
    )


@pytest.mark.parametrize("share", SHARES)
def test_cats(share: float) -> None:
    assert float(limits("cats", share)) == pytest.approx(
        sorted_at(samples()["gate"].abs(), share), rel=BIN
    )


@pytest.mark.parametrize("share", SHARES)
def test_wina(share: float) -> None:
    bound = sorted_at(samples()["x"].abs() * NORMS, share)
    expected = [bound / norm for norm in NORMS.tolist()]
    assert limits("wina", share).tolist() == pytest.approx(expected, rel=BIN)


@pytest.mark.parametrize("share", SHARES)
def test_chess(share: float) -> None:
    raw = samples()
    beside = [sum(raw["up"][:, at].abs().tolist()) / ROWS for at in range(ENTRIES)]
    bound = sorted_at(raw["gate"].abs() * torch.tensor(beside), share)
    assert limits("chess", share).tolist() == pytest.approx([bound / b for b in beside], rel=BIN)


def test_what_nothing_multiplies_goes_first() -> None:
    norms = NORMS.clone()
    norms[[3, 7]] = 0.0
    found = limits("wina", 0.3, column_norms=norms)
    assert found[[3, 7]].isposinf().all() and int(found.isposinf().sum()) == 2
    value = samples(seed=70)["x"].abs()
    assert float((value <= found).float().mean()) == pytest.approx(0.3, abs=0.015)


@pytest.mark.parametrize("name", ["teal", "wina"])
def test_zeros_of_their_own_are_counted(name: str) -> None:
    """Where more is zero than is to be left out, nothing else is."""
    value = samples()["x"].relu()
    assert not limits(name, 0.3, magnitude=Histogram.of(value)).any()
    found = limits(name, 0.7, magnitude=Histogram.of(value))
    assert float((value <= found).float().mean()) == pytest.approx(0.7, abs=0.015)


@pytest.mark.parametrize("name", ["griffin", "core_matching"])
def test_what_a_prompt_used_most_stays(name: str) -> None:
    prompt = torch.tensor([0.5, 2.0, 0.5, 0.0, 2.0, 0.75])
    for kept, expected in ((1, {1}), (2, {1, 4}), (3, {1, 4, 5}), (4, {0, 1, 4, 5})):
        found = limits(name, 1 - kept / 6, prompt=prompt)
        assert {at for at in range(6) if found[at] < 0} == expected


def hostile(rows: int) -> Tensor:
    """Tokens of unlike sizes; one of zeros, one with NaN, one with an infinity."""
    values = drawn(rows, ENTRIES, seed=rows) * torch.logspace(-3, 3, rows)[:, None]
    values[0], values[1, 3], values[2, 5] = 0.0, torch.nan, torch.inf
    return values


def finite_rows(values: Tensor) -> list[list[float]]:
    return [[x if abs(x) < float("inf") else 0.0 for x in row] for row in values.tolist()]


def test_griffin_s_tokens_count_alike() -> None:
    values, expected = hostile(6), [0.0] * ENTRIES
    for row in finite_rows(values):
        energy = sum(x * x for x in row)
        for at, x in enumerate(row):
            expected[at] += x * x / energy if energy else 0.0
    seen = named("griffin").seen
    assert seen is not None
    assert seen(values).tolist() == pytest.approx(expected, rel=1e-5)
    assert float(seen(values).sum()) == pytest.approx(5, rel=1e-5)
    both = seen(values[:4]) + seen(values[4:])
    assert torch.allclose(both, seen(values))


def test_core_matching_counts_each_token_s_core() -> None:
    values, expected = hostile(6).relu(), [0.0] * ENTRIES
    for row in finite_rows(values):
        active = sorted((x for x in row if x > 0), reverse=True)
        core = active[: int(len(active) * 0.4)]
        for at, x in enumerate(row):
            expected[at] += x in core
    seen = named("core_matching").seen
    assert seen is not None and sum(expected) > 0
    assert seen(values).tolist() == expected
    assert seen(values.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("share", SHARES)
def test_top_k(rows: int, share: float) -> None:
    """Every row keeps its largest; the row with the least bound keeps no other."""
    values = drawn(rows, ENTRIES, seed=rows) * torch.linspace(0.5, 2, rows)[:, None]
    dropped = max(1, round(share * ENTRIES))
    bounds = [sorted(row.abs().tolist())[dropped - 1] for row in values]
    found = limits("top_k", share, values=values)
    assert found.shape == (1,) and float(found) == min(bounds)
    kept = (values.abs() > found).sum(-1)
    assert (kept >= ENTRIES - dropped).all() and int(kept.min()) == ENTRIES - dropped
    half = limits("top_k", share, values=values.bfloat16())
    assert half.dtype == torch.float32


def test_random_is_the_seed_s() -> None:
    first, again = (limits("random", 0.5, seed=1) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, limits("random", 0.5, seed=2))
    drawn_often = sum((limits("random", 0.5, seed=seed) < 0).float() for seed in range(200))
    assert isinstance(drawn_often, Tensor)
    assert (drawn_often / 200 - 0.5).abs().max() < 0.2
