"""The command on real models: from a first file to every exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from tokenpass.check import running
from tokenpass.cli import consoles
from tokenpass.cli.app import app
from tokenpass.errors import UserError

MODELS = Path(__file__).parent / "models.py"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(consoles.out, "width", 200)  # COLUMNS is read once, when it is made
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    torch._dynamo.reset()


def write(model: str = "encoder", gates: str = "{max_error: 10}", more: str = "") -> None:
    Path("tokenpass.check.yaml").write_text(
        f"""version: 1
cases:
  one:
    model: "{MODELS}:{model}"
    options: {{budget: 0.6, objective: flops}}
    gates: {gates}
{more}"""
    )


def run(*arguments: str, code: int | None = 0) -> Result:
    found = CliRunner().invoke(app, ["check", *arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert code is None or found.exit_code == code, found.output
    return found


def test_from_a_baseline_to_a_difference() -> None:
    write()
    assert "baseline written" in run("--no-timing", "--update-baseline").output
    assert "as in the baseline" in run("--no-timing").output
    write("deeper")
    found = run("--no-timing", code=1).output
    assert "the model or its inputs changed" in found and "layers: 3 -> 4" in found


def test_json_alone_is_on_standard_output() -> None:
    write("prints")
    run("--no-timing", "--update-baseline")
    found = run("--no-timing", "--json", "--junit", "out/junit.xml")
    data = json.loads(found.stdout)
    assert data["cases"]["one"]["status"] == "passed"
    assert "loading the weights" in found.stderr
    assert Path("out/junit.xml").read_text().startswith("<?xml")


def test_a_missing_baseline_is_no_pass() -> None:
    write()
    with pytest.raises(UserError, match=r"file not found.*--update-baseline"):
        run("--no-timing")


def test_a_case_that_the_baseline_lacks() -> None:
    write()
    run("--no-timing", "--update-baseline")
    write(more=f'  two: {{model: "{MODELS}:encoder"}}\n')
    found = run("--no-timing", code=1).output
    assert "not in the baseline" in found
    only = run("--no-timing", "--only", "one").output
    assert "not in the baseline" not in only and "the check file lacks" not in only
    run("--no-timing", "--update-baseline", "--only", "two")
    run("--no-timing")
    write()
    assert "cases that the check file lacks: two" in run("--no-timing").output


def test_a_broken_baseline_is_written_anew_as_a_whole() -> None:
    write("small", gates="{}", more=f'  two: {{model: "{MODELS}:small"}}\n')
    path = Path("tokenpass.baseline.json")
    path.write_text("{")
    for arguments in ((), ("--update-baseline", "--only", "two")):
        with pytest.raises(UserError, match="not valid JSON"):
            run("--no-timing", *arguments)
    found = run("--no-timing", "--update-baseline")
    assert "write it anew with --update-baseline: done" in found.stderr
    run("--no-timing")
    path.write_text('{"version": 99}')
    with pytest.raises(UserError, match="newer"):
        run("--no-timing", "--update-baseline")


@pytest.mark.parametrize(
    ("model", "code", "told"),
    [
        ("raises", 5, "no weights here"),
        ("nothing", 5, "expected"),
        ("not_there", 5, "has no 'not_there'"),
        ("not_finite", 4, "not finite"),
    ],
)
def test_models_that_do_not_run(model: str, code: int, told: str) -> None:
    write()
    run("--no-timing", "--update-baseline")
    write(model)
    assert told in run("--no-timing", code=code).output


@pytest.mark.parametrize(
    ("gates", "code", "told"),
    [
        ("{max_error: 10}", 0, "at most 10"),
        ("{max_error: 0.000001}", 4, "at most 1e-06"),
        ("{min_cosine: 1}", 4, "at least 1"),
        ("{max_kl: 0.000000001}", 4, "at most 1e-09"),
        ("{METRIC, min_metric: 48}", 0, "48, at least 48"),
        ("{METRIC, min_metric: 49}", 4, "48, at least 49"),
        ("{BAD}", 5, "no labels here"),
    ],
)
def test_quality(gates: str, code: int, told: str) -> None:
    gates = gates.replace("METRIC", f'metric: "{MODELS}:metric"')
    write(gates=gates.replace("BAD", f'metric: "{MODELS}:bad_metric"'))
    assert told in run("--no-timing", "--update-baseline", code=code).output


def test_inputs_that_a_call_changes() -> None:
    write("grows", gates="{max_error: 0.001, min_speedup: 0.001}")
    run("--no-timing", "--update-baseline")
    assert "error   passed" in run("--no-timing").output
    found = run("--time-limit", "5", code=None)
    assert found.exit_code in (0, 3) and "broken" not in found.output


def test_what_is_wrong_is_not_taken_down() -> None:
    write()
    run("--no-timing", "--update-baseline")
    before = Path("tokenpass.baseline.json").read_text()
    write("deeper", gates="{max_error: 0.000001}")
    run("--no-timing", "--update-baseline", code=4)
    assert Path("tokenpass.baseline.json").read_text() == before


def test_fewer_graph_breaks_fail_on_demand() -> None:
    write()
    run("--no-timing", "--update-baseline")
    path = Path("tokenpass.baseline.json")
    data = json.loads(path.read_text())
    data["cases"]["one"]["facts"]["graph_breaks"] = 2
    path.write_text(json.dumps(data))
    assert "graph breaks: 2 -> 0" in run("--no-timing").output
    run("--no-timing", "--fail-on-improvement", code=1)


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    write(more=f'  two: {{model: "{MODELS}:encoder"}}\n')
    run("--no-timing", "--update-baseline")
    before = Path("tokenpass.baseline.json").read_text()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Running, "judge", stop)
    found = run("--no-timing", "--update-baseline", code=3).output
    assert "interrupted in the middle" in found and "not started" in found
    assert Path("tokenpass.baseline.json").read_text() == before


def test_on_github(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    run("--no-timing", "--update-baseline")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    write("deeper")
    found = run("--no-timing", code=1)
    assert "::error file=tokenpass.check.yaml,line=3,title=one%3A facts failed::" in found.stdout
    assert "| one | facts |" in Path("summary.md").read_text()


def test_a_first_file() -> None:
    run("init", f"{MODELS}:encoder")
    text = Path("tokenpass.check.yaml").read_text()
    assert "encoder:" in text and "budget: 0.5" in text
    run("--no-timing", "--update-baseline")
    run("--no-timing")
    with pytest.raises(UserError, match="there already"):
        run("init", f"{MODELS}:encoder")


def test_a_first_workflow() -> None:
    assert "workflow written" in run("workflow").output
    written = Path(".github/workflows/tokenpass.yml").read_text()
    assert "tokenpass check --no-timing" in written
    with pytest.raises(UserError, match="there already"):
        run("workflow")
    with pytest.raises(UserError, match="takes no model"):
        run("workflow", f"{MODELS}:encoder")


def test_a_history_and_its_plot() -> None:
    write("small", gates="{}")
    run("--no-timing", "--update-baseline")
    for _ in range(2):
        run("--no-timing", "--history", "out/history.jsonl", "--plot", "out/history.svg")
    assert len(Path("out/history.jsonl").read_text().splitlines()) == 2
    assert "</svg>" in Path("out/history.svg").read_text()
    with pytest.raises(UserError, match="--history"):
        run("--no-timing", "--plot", "out/history.svg")


def test_a_time_limit_that_is_too_short() -> None:
    write(gates="{min_speedup: 1.0}")
    found = run("--update-baseline", "--time-limit", "0.001", code=3).output
    assert "inconclusive" in found and "--time-limit" in found


def test_speed_is_measured_beside_its_floor() -> None:
    write(gates="{min_speedup: 0.001, tolerance: 99%}")
    found = run("--update-baseline", "--time-limit", "20", code=None)
    speed = json.loads(Path("tokenpass.baseline.json").read_text())["cases"]["one"]["speed"]
    assert found.exit_code in (0, 3) and speed["pairs"] >= 8 and speed["low"] <= speed["speedup"]
    write(gates="{min_speedup: 1000}")
    found = run("--time-limit", "20", code=None)
    told = " ".join(found.output.split())
    assert found.exit_code in (1, 3) and "at least 1000.000 (min_speedup" in told
