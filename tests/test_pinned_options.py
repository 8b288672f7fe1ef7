"""Pinned edits as a config file says them: what is accepted, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config_options import NAN, config, refuse
from tokenpass.errors import ConfigError

EDIT = {"pass": "token_merge", "site": "encoder.layer.2 residual 0", "policy": "tome", "level": 192}


def pinned(**changes: Any) -> dict[str, Any]:
    return {"edits": [{**EDIT, **changes}], "fingerprint": "3f9a"}


@pytest.mark.parametrize(
    "level",
    [192, "192", 0.5, "16*floor(3*tokens/64)", "Max(1, ceiling(tokens/2) - 1)", "-(-tokens//2)"]
    + ["Min(tokens, 4)", "Mod(tokens, 2)", "tokens"],
)
def test_levels(level: Any) -> None:
    edits = config(config=pinned(level=level)).edits
    assert edits is not None
    assert edits[0].level == str(level)


@pytest.mark.parametrize(
    "level",
    ["__import__('os')", "9**9**9", "tokens.x", "s0", "floor", "floor()", "floor(x=1)", "", "1 2"]
    + [True, None, [], "f(1)", "1 if tokens else 2", "lambda: 1", "'a'", "1e999", "tokens[0]"]
    + ["(" * 500, "1" * 1001, "floor(*tokens)", "True", "2j", "a\0", "~1", "1 < 2", "1 % 0", NAN],
)
def test_bad_levels(level: Any) -> None:
    text = refuse(ConfigError, config=pinned(level=level))
    assert text.startswith("config: edits[0].level: expected a number, or arithmetic")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pinned(policy="tme"), "edits[0].policy: unknown policy 'tme' (did you mean 'tome'?)"),
        (pinned(**{"pass": "token_merg"}), "edits[0].pass: unknown pass 'token_merg' (did you"),
        (pinned(sit="a"), "edits[0].sit: unknown option (did you mean 'site'?)"),
        (pinned(site=""), "edits[0].site: expected a site"),
        (pinned(pass_name="token_merge"), "edits[0].pass_name: unknown option"),
        ({"edits": [{"pass": "token_merge"}], "fingerprint": "a"}, "edits[0].site: missing"),
        ({"edits": ["token_merge"], "fingerprint": "a"}, "edits[0]: expected {pass, site,"),
        ({"edits": None, "fingerprint": "a"}, "edits: expected a list of {pass, site,"),
        ({"edits": []}, "edits: need the fingerprint"),
        ({"edits": [], "fingerprint": None}, "edits: need the fingerprint"),
        ({"edits": [], "fingerprint": 3}, "fingerprint: expected the fingerprint"),
        ({"fingerprint": "a"}, "fingerprint: tells of pinned edits, but there are no"),
        ({"error": 0.1}, "error: tells of pinned edits"),
        ({"edits": [], "fingerprint": "a", "error": -1}, "error: expected a number from 0, got -1"),
        ({"edits": [], "fingerprint": "a", "predicted_share": NAN}, "predicted_share: expected"),
    ],
)
def test_bad_edits(given: dict[str, Any], expected: str) -> None:
    assert expected in refuse(ConfigError, config=given)


def test_an_exact_pass_may_be_pinned_with_any_policy() -> None:
    edits = config(config=pinned(**{"pass": "dead_tokens", "policy": "exact"})).edits
    assert edits is not None
    assert edits[0].pass_name == "dead_tokens"


def test_no_edits_at_all_is_a_plan() -> None:
    assert config(config={"edits": [], "fingerprint": "a"}).edits == ()


@pytest.mark.parametrize("name", ["budget", "max_error", "objective", "passes"])
def test_planning_options_beside_pinned_edits_are_refused(name: str) -> None:
    value = {"budget": 0.5, "max_error": 0.5, "objective": "flops", "passes": []}[name]
    text = refuse(config=pinned(), **{name: value})
    assert text.startswith(f"{name}: has no effect beside the edits")
    assert config(config={**pinned(), name: value}).edits
