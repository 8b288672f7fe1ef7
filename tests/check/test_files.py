"""Check files and baselines: read as data, strictly, with the place of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.check.samples import baseline
from tokenpass.check.baseline import read_baseline, write_baseline
from tokenpass.check.check_file import read_check_file
from tokenpass.errors import ConfigError, UserError

FILE = """\
version: 1
cases:
  encoder:
    model: my_models:encoder
    options: {budget: "50%"}
    shapes: my_models:lengths
    gates: {min_speedup: 1.3, tolerance: 5%, max_error: 0.2, metric: "m:recall", min_metric: 0.7}
  other: {model: "folder/file.py:model"}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "tokenpass.check.yaml"
    path.write_text(text)
    return path


def test_a_file(tmp_path: Path) -> None:
    found = read_check_file(written(tmp_path, FILE))
    first, second = found.cases
    assert (first.name, first.line, second.line) == ("encoder", 3, 8)
    assert first.config.budget == 0.5 and first.config.device_profile == "generic-cpu"
    assert first.spec.gates.tolerance == 0.05 and first.spec.gates.min_metric == 0.7
    assert second.spec.gates.tolerance == 0.05 and second.spec.gates.min_speedup is None
    assert [case.name for case in found.only(("other",)).cases] == ["other"]
    with pytest.raises(UserError, match="did you mean 'encoder'"):
        found.only(("encodr",))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 1", "version: 2", "1: version: expected 1"),
        ("version: 1\n", "", "version: missing"),
        ("model: my_models:encoder", "model: encoder", "4: cases.encoder.model: expected MODULE"),
        ("model: my_models:encoder", "modle: a:b", "cases.encoder.modle: unknown key"),
        ('budget: "50%"', "budgte: 0.5", "5: cases.encoder.options: budgte: unknown option"),
        ('budget: "50%"', "lowering: eager", "options.lowering: is decided by the check"),
        (
            "min_speedup: 1.3",
            "min_speedup: -1",
            "gates.min_speedup: expected a ratio",
        ),
        ("min_speedup: 1.3", "min_speedup: .nan", "gates.min_speedup: expected a ratio"),
        ("tolerance: 5%", "tolerance: 120%", "gates.tolerance: expected a share"),
        ('metric: "m:recall", ', "", "there is no `metric`"),
        ("  encoder:", "  encoder: 3\n  third:", "3: cases.encoder: expected a mapping"),
        ("  other:", "  encoder:", "encoder"),
        ("cases:", "device_profile: nowhere.yaml\ncases:", "nowhere.yaml"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in FILE
    with pytest.raises(ConfigError) as raised:
        read_check_file(written(tmp_path, FILE.replace(old, new, 1)))
    assert expected in str(raised.value)


def test_no_case(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cases: expected a mapping of cases"):
        read_check_file(written(tmp_path, "version: 1\ncases: {}\n"))


def test_a_baseline_comes_back_and_is_sorted(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(baseline(), path)
    assert read_baseline(path) == baseline()
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert [p.name for p in tmp_path.iterdir()] == ["baseline.json"]


def test_no_baseline(tmp_path: Path) -> None:
    assert read_baseline(tmp_path / "none.json") is None


def changed(change: Any) -> str:
    data = baseline().model_dump()
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (changed(lambda d: None)[:-40], "not valid JSON"),
        ("[]", "the file"),
        ("3", "the file"),
        (changed(lambda d: d.update(version=2)), "written by a newer tokenpass"),
        (changed(lambda d: d.update(version=0)), "version"),
        (changed(lambda d: d.update(more=1)), "more"),
        (changed(lambda d: d["cases"]["a"]["speed"].update(low=-1)), "cases.a.speed.low"),
        (changed(lambda d: d["cases"]["a"]["facts"].pop("graphs")), "cases.a.facts.graphs"),
        (changed(lambda d: d["cases"]["a"]["speed"].update(low=float("nan"))), "NaN"),
    ],
)
def test_a_baseline_that_is_none(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_baseline(path)
    assert str(path) in str(raised.value) and expected in str(raised.value)


def test_a_baseline_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_baseline(baseline(), folder)
    assert list(folder.iterdir()) == [] and [p.name for p in tmp_path.iterdir()] == ["folder"]
