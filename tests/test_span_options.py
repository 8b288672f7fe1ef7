"""Spans in options: how they are written, what is refused, and what a name stands for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config_options import config, refuse
from tests.test_pinned_options import pinned
from tokenpass.config_schema import TokenOptions
from tokenpass.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([5, 581], ((5, 581),)),
        ((5, 581), ((5, 581),)),
        ([[5, 581]], ((5, 581),)),
        ([[600, 700], [5, 581]], ((5, 581), (600, 700))),
        ([[5, 10], [10, 12]], ((5, 12),)),
        ([[5, 20], [6, 8]], ((5, 20),)),
    ],
)
def test_spans(given: Any, found: Any) -> None:
    assert config(spans={"image": given}).spans == {"image": found}
    passes = config(passes=[{"token_merge": {"span": given}}]).passes
    assert passes is not None
    assert isinstance(passes[0].options, TokenOptions)
    assert passes[0].options.span == found
    edits = config(config=pinned(span=given)).edits
    assert edits is not None
    assert edits[0].span == found


@pytest.mark.parametrize(
    "bad",
    [[], [5], [5, 5], [6, 5], [-1, 4], [1, 2, 3], ["1", "2"], [True, 2], 5, None, [[1, 2], 3], ""]
    + [[1.0, 2.0], {"start": 1, "stop": 2}],
)
def test_bad_spans(bad: Any) -> None:
    assert refuse(spans={"image": bad}).startswith("spans: expected {name: [start, stop]}")
    if bad is not None:
        at = refuse(passes=[{"token_merge": {"span": bad}}])
        assert at.startswith("passes[0].token_merge.span: expected a name from `spans`")
    assert "edits[0].span: expected positions" in refuse(ConfigError, config=pinned(span=bad))


@pytest.mark.parametrize("bad", [{}, [], {"": [1, 2]}, {3: [1, 2]}, "image"])
def test_bad_names(bad: Any) -> None:
    assert refuse(spans=bad).startswith("spans: expected {name: [start, stop]}")


def test_what_is_wrong_with_a_span_is_said() -> None:
    assert "the stop is not included" in refuse(spans={"image": [7, 7]})
    assert "positions count from 0" in refuse(spans={"image": [-1, 7]})


def test_a_pass_names_a_span_that_is_there() -> None:
    given = [{"token_prune": {"span": "image"}}]
    assert config(spans={"image": [1, 9]}, passes=given).passes
    assert config(config={"passes": given}, spans={"image": [1, 9]}).passes
    text = refuse(spans={"picture": [1, 9]}, passes=[{"token_prune": {"span": "pictur"}}])
    assert text.startswith("token_prune: span: `spans` names no 'pictur' (did you mean 'picture'?)")
    assert "names no 'image'" in refuse(passes=given)


def test_spans_beside_pinned_edits_have_no_effect() -> None:
    assert refuse(config=pinned(), spans={"image": [1, 9]}).startswith("spans: has no effect")
