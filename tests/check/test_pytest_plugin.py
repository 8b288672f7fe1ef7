"""The fixture in tests of its own: no baseline, a baseline, a difference, the clock, bad gates."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from threading import Thread

import pytest

from tests.check.samples import FACTS, MACHINE
from tokenpass.check.baseline import Baseline, CaseBaseline, read_baseline
from tokenpass.pytest_plugin.in_test import BASELINE, Check

pytest_plugins = ["pytester"]

TEST = """
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x):
            return x + self.down(torch.nn.functional.gelu(self.up(x)))

    def model(layers):
        torch.manual_seed(0)
        return nn.Sequential(*[Layer() for _ in range(layers)]).eval()

    def check(given, **gates):
        return given(model(LAYERS), (torch.ones(2, 8, 16),), **gates)

    def test_layers(tokenpass_check):
        found = check(tokenpass_check)
        assert found.status == "passed" and found.facts.graphs

    def test_metric(tokenpass_check):
        check(tokenpass_check, metric=lambda model: 0.5, min_metric=0.6)

    def test_gate_that_is_none(tokenpass_check):
        check(tokenpass_check, min_sped=1.0)

    def test_speed(tokenpass_check):
        check(tokenpass_check, min_speedup=0.5)
"""


def run(folder: pytest.Pytester, *more: str, layers: int = 1) -> pytest.RunResult:
    """In a process of its own: an inner run forgets what it imported, which torch does not bear."""
    folder.makeini("[pytest]\n")
    folder.makepyfile(test_models=TEST.replace("LAYERS", str(layers)))
    return folder.runpytest_subprocess("-rs", *more)


def test_it_is_an_entry_point() -> None:
    (found,) = entry_points(group="pytest11", name="tokenpass")
    assert found.value == "tokenpass.pytest_plugin"


def test_from_no_baseline_to_a_difference(pytester: pytest.Pytester) -> None:
    missing = run(pytester, "-k", "layers")
    missing.assert_outcomes(failed=1, deselected=3)
    missing.stdout.fnmatch_lines(["*facts failed: *not in the baseline: --tokenpass-update"])
    run(pytester, "--tokenpass-update", "-k", "layers").assert_outcomes(passed=1, deselected=3)
    path = pytester.path / BASELINE
    assert list(json.loads(path.read_text())["cases"]) == ["test_models.py::test_layers"]
    before = path.read_text()
    run(pytester, "-k", "layers").assert_outcomes(passed=1, deselected=3)
    changed = run(pytester, "-k", "layers", layers=2)
    changed.assert_outcomes(failed=1, deselected=3)
    changed.stdout.fnmatch_lines(["tokenpass check of test_models.py::test_layers: failed"])
    changed.stdout.fnmatch_lines(["*the model or its inputs changed*"])
    assert path.read_text() == before


def test_gates(pytester: pytest.Pytester) -> None:
    found = run(pytester, "--tokenpass-update", "-k", "metric or none")
    found.assert_outcomes(failed=2, deselected=2)
    found.stdout.fnmatch_lines(["*metric wrong: 0.5, at least 0.6"])
    found.stdout.fnmatch_lines(["*gates.min_sped: unknown key (did you mean 'min_speedup'*"])
    assert not (pytester.path / BASELINE).exists(), "what is wrong is not taken down"


def test_what_the_clock_cannot_tell_is_skipped(pytester: pytest.Pytester) -> None:
    given = ("--tokenpass-update", "--tokenpass-timing", "--tokenpass-time-limit=0.0001")
    found = run(pytester, *given, "-k", "speed")
    found.assert_outcomes(skipped=1, deselected=3)
    found.stdout.fnmatch_lines(["*pairs are too few*"])


def test_processes_that_write_at_once(tmp_path: Path) -> None:
    case = CaseBaseline(model="m:m", options={}, facts=FACTS, fingerprint=MACHINE)
    path, names = tmp_path / BASELINE, [f"case {at}" for at in range(8)]

    def write(name: str) -> None:
        made = Baseline(device_profile="p", device_profile_hash="h", cases={name: case})
        Check.write(made, name, path)

    threads = [Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_baseline(path)
    assert found is not None and sorted(found.cases) == names
    assert list(tmp_path.iterdir()) == [path], "nothing else is left there"


def test_names_of_several_checks() -> None:
    class Node:
        nodeid, path = "folder/test_a.py::TestB::test_c[1]", Path("folder/test_a.py")

    check = Check(Node, None)
    assert check.name() == "test_a.py::TestB::test_c[1]"
    assert check.name() == "test_a.py::TestB::test_c[1] (2)"
