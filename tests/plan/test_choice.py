"""The least that may stay at a site."""

from __future__ import annotations

from dataclasses import replace

from tokenpass.plan.choice import Choice


def choice(lowest: float, never_below: int = 1, spared: int = 0, apart: int = 0) -> Choice:
    return Choice("p", "s", "", 0, 256, 0.5, lowest, never_below, 1.0, None, spared, apart)


def test_the_lowest_share_is_rounded_up() -> None:
    assert choice(0.5).least(255) == 128
    assert choice(0.1).least(256) == 26


def test_spared_tokens_stay_beside_the_lowest_share() -> None:
    assert choice(0.5, spared=1).least(256) == 129


def test_never_below_binds_on_short_streams_and_nothing_grows() -> None:
    assert choice(0.1, never_below=4).least(10) == 4
    assert choice(0.5, never_below=4, spared=4).least(3) == 3


def test_shares_count_the_tokens_of_a_span_alone() -> None:
    spanned = choice(0.1, apart=200)
    assert spanned.kept(256, 0.5) == 228
    assert spanned.least(256) == 206
    assert choice(0.5, spared=1, apart=200).least(230) == 216
    assert spanned.least(200) == 200


def test_of_a_dynamic_length_one_token_alone_does_not_leave() -> None:
    one = replace(choice(0.5), dynamic=True)
    assert [one.settled(20, wanted) for wanted in (25, 20, 19, 18, 4)] == [20, 20, 20, 18, 10]
    assert choice(0.5).settled(20, 19) == 19
