"""A plan written to a file and read back is the same plan."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenpass.config import PassSchema, resolve
from tokenpass.edits import Edit, Plan, Rejection
from tokenpass.errors import ConfigError, InternalError, OptionError
from tokenpass.plan.plan_file import pinned_plan, plan_to_yaml

PASSES = {
    "token_merge": PassSchema(policies=("tome", "pitome")),
    "token_prune": PassSchema(policies=("class_attention",)),
    "dead_tokens": PassSchema(exact=True),
}
PLAN = Plan(
    fingerprint="3f9a",
    edits=(
        Edit("dead_tokens", "encoder.layer.11 residual 1", "exact", "1"),
        Edit("token_merge", "encoder.layer.2 residual 0", "tome", "16*floor(3*tokens/64)"),
    ),
    budget=0.5,
    objective="flops",
    dense_cost=4.0,
    planned_cost=1.9,
    error=0.031,
    rejections=(Rejection("no-rule", "node sort", "no rule\nfor it", "use topk", "model.py:3"),),
    notes=("two stages",),
    seed=7,
)


def read(text: str, folder: Path, **options: object) -> Plan | None:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return pinned_plan(resolve({"config": path, **options}, PASSES))


def test_round_trip(tmp_path: Path) -> None:
    plan = read(plan_to_yaml(PLAN), tmp_path)
    assert plan is not None
    assert plan.edits == PLAN.edits
    assert plan.share == PLAN.share
    for name in ("fingerprint", "budget", "objective", "error", "seed"):
        assert getattr(plan, name) == getattr(PLAN, name)


def test_the_file_reads_like_this() -> None:
    assert plan_to_yaml(PLAN) == (
        '# A tokenpass plan: run it again with options={"config": "<this file>"}.\n'
        "# An edit's level may be changed and an edit may be removed; the fingerprint names the "
        "graph.\n"
        "# two stages\n"
        "version: 1\n"
        "budget: 0.5\n"
        "objective: flops\n"
        "seed: 7\n"
        "predicted_share: 0.475\n"
        "error: 0.031\n"
        "fingerprint: 3f9a\n"
        "edits:\n"
        "  - {pass: dead_tokens, site: encoder.layer.11 residual 1, policy: exact, level: '1'}\n"
        "  - {pass: token_merge, site: encoder.layer.2 residual 0, policy: tome, "
        "level: 16*floor(3*tokens/64)}\n"
        "# not edited: no-rule [node sort] at model.py:3: no rule\n"
        "# for it (use topk)\n"
    )


def test_a_plan_without_edits_pins_dense(tmp_path: Path) -> None:
    plan = read(plan_to_yaml(Plan(fingerprint="a")), tmp_path)
    assert plan == Plan(fingerprint="a")


def test_no_edits_key_leaves_it_to_the_planner() -> None:
    assert pinned_plan(resolve({"budget": 0.5}, PASSES)) is None


def test_predictions_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    text = plan_to_yaml(Plan(fingerprint="a", error=math.inf, dense_cost=1, planned_cost=math.nan))
    assert "error:" not in text
    assert "predicted_share:" not in text
    assert read(text, tmp_path) == Plan(fingerprint="a")


def test_a_plan_needs_a_fingerprint() -> None:
    with pytest.raises(InternalError, match="fingerprint"):
        plan_to_yaml(Plan(fingerprint=""))


def test_budget_beside_a_pinned_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"budget: has no effect .*plan\.yaml pins"):
        read(plan_to_yaml(PLAN), tmp_path, budget=0.3)
    assert read(plan_to_yaml(PLAN), tmp_path, lowering="eager") is not None


def test_an_edit_with_a_typo_names_its_line(tmp_path: Path) -> None:
    text = plan_to_yaml(PLAN).replace("policy: tome", "policy: tme")
    with pytest.raises(ConfigError, match=r"plan\.yaml:13: edits\[1\]\.policy: .*'tome'"):
        read(text, tmp_path)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    site=st.text(
        st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=40
    ),
    fingerprint=st.text("0123456789abcdef+-e.", min_size=1, max_size=20),
    note=st.text(max_size=30),
    budget=st.floats(0, 1, exclude_min=True),
)
def test_any_site_survives(
    tmp_path: Path, site: str, fingerprint: str, note: str, budget: float
) -> None:
    edits = (Edit("token_merge", site, "tome", "tokens//2"),)
    plan = Plan(fingerprint=fingerprint, edits=edits, budget=budget, notes=(note,))
    assert read(plan_to_yaml(plan), tmp_path) == Plan(
        fingerprint=fingerprint, edits=edits, budget=budget
    )
