"""Reports as text, and the log: told when asked for, silent otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenpass.edits import Edit, Plan, Rejection
from tokenpass.report import (
    KEPT,
    GraphReport,
    LayerRow,
    Log,
    aligned,
    details,
    grouped,
    text,
    without_sources,
)

EDIT = Edit("token_merge", "layer.0:after_attention", "tome", "16*floor(3*tokens/64)")
REJECTION = Rejection("nothing_behind", "layer.1", "nothing is left", "be glad", "model.py:3 in f")
PLAN = Plan(
    "f00d",
    (EDIT,),
    budget=0.5,
    dense_cost=2e-3,
    planned_cost=1e-3,
    error=0.25,
    rejections=(REJECTION,),
    notes=("two stages",),
)
REPORT = GraphReport(
    "edited",
    PLAN,
    "generic-cpu",
    (
        LayerRow(0, "layer.0", "64", "48", 1e-3, 0.6e-3, (EDIT,)),
        LayerRow(1, "layer.1", "48", "1", 0.5e-3, 0.1e-3),
    ),
    0.5e-3,
    0.3e-3,
    unknown=("aten.odd",),
    seconds=0.5,
    plan_yaml="edits:\n",
    exact=False,
    found=("2 x attention", "reads first token"),
)

COMPILE = """
import torch
from tokenpass.backend import tokenpass

def attend(x):
    heads = x.view(x.shape[0], -1, 4, 8).transpose(1, 2)
    mixed = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    return x + mixed.transpose(1, 2).reshape(x.shape)

torch.compile(attend, backend=tokenpass, options={"lowering": "eager"})(torch.randn(2, 64, 32))
"""


def test_a_report_reads_like_this() -> None:
    assert text(REPORT).splitlines() == [
        "tokenpass: edited, budget 0.5, predicted cost 0.500 of dense (1 of 2 ms), "
        "estimated error 0.25",
        "device profile: generic-cpu",
        "found: 2 x attention, reads first token",
        "layer  module     tokens in  tokens out  dense ms  planned ms  share",
        "    0  layer.0    64         48             1.000       0.600   0.60",
        "    1  layer.1    48         1              0.500       0.100   0.20",
        "       (outside)                            0.500       0.300   0.60",
        "       (all)                                2.000       1.000   0.50",
        "edit: token_merge/tome at layer.0:after_attention keeps 16*floor(3*tokens/64)",
        "note: two stages",
        "left alone: nothing_behind [layer.1] at model.py:3 in f: nothing is left (be glad)",
        "costed by bytes alone: aten.odd",
    ]


def test_details_have_every_place_and_the_plan() -> None:
    shown = details(GraphReport("edited", Plan("a", rejections=(REJECTION,) * 3), plan_yaml="x\n"))
    assert shown.count("nothing_behind") == 3
    assert shown.endswith("x")


def test_exact_dense_and_failed_graphs() -> None:
    exact = GraphReport("edited", Plan("a", dense_cost=1.0, planned_cost=0.9))
    assert "predicted cost 0.900 of dense (900 of 1000 ms), exact" in text(exact)
    dense = GraphReport("dense", Plan("a", dense_cost=1.0, planned_cost=1.0, objective="flops"))
    assert text(dense) == "tokenpass: dense, budget 1, predicted 1e-06 MFLOP"
    assert text(GraphReport("dense", Plan(""))) == "tokenpass: dense, nothing was planned"
    asked = GraphReport("dense", Plan("a", dense_cost=2e-5), goal="max_error 0.1")
    assert text(asked) == "tokenpass: dense, max_error 0.1, predicted 20 us"
    failed = GraphReport("fallback", Plan(""), cause="KeyError: 'x'")
    assert text(failed) == "tokenpass: dense, because tokenpass failed: KeyError: 'x'"


def test_one_reason_is_told_once() -> None:
    other = Rejection("no_site", "stream", "none")
    assert grouped([REJECTION, other, REJECTION, REJECTION]) == [
        f"{REJECTION} (and 2 more places)",
        str(other),
    ]


def test_columns_are_aligned() -> None:
    assert aligned([("a", "1"), ("bcd", "100")], {1}) == ["a      1", "bcd  100"]


def test_sources_can_be_left_out() -> None:
    assert "model.py" not in text(without_sources(REPORT))


def test_the_log_keeps_the_newest() -> None:
    log = Log()
    for at in range(KEPT + 3):
        log.add(GraphReport("dense", Plan(str(at))))
    assert len(log.all()) == KEPT
    assert log.all()[-1].plan.fingerprint == str(KEPT + 2)
    log.clear()
    assert log.all() == ()


@pytest.mark.parametrize(
    ("setting", "told", "in_detail"),
    [(None, False, False), ("tokenpass", True, False), ("+tokenpass", True, True)],
)
def test_torch_logs(setting: str | None, told: bool, in_detail: bool, repository: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "TORCH_LOGS"}
    env |= {"PYTHONPATH": str(repository)} | ({"TORCH_LOGS": setting} if setting else {})
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", COMPILE],
        cwd=repository, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    shown = done.stderr
    assert ("tokenpass: dense, budget 1, predicted" in shown) == told
    assert ("fingerprint:" in shown) == in_detail
    if not told:
        assert not shown
