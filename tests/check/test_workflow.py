"""The workflow and the hook that are handed out: valid, pinned, and their steps really run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

SOURCE = Path(__file__).parents[2] / "tokenpass" / "cli" / "workflow.yml"
BIN = Path(sys.executable).parent
MODELS = """
import torch


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 16)).eval(), (torch.ones(4, 16),)
"""
CHECK_FILE = "version: 1\ncases:\n  one: {model: 'my_models:model'}\n"


def workflow() -> dict[str, Any]:
    return yaml.safe_load(SOURCE.read_text())


def step(job: str, name: str) -> str:
    (found,) = (s["run"] for s in workflow()["jobs"][job]["steps"] if s.get("name") == name)
    return found


def bash(script: str, folder: Path, path: Path = BIN) -> subprocess.CompletedProcess[str]:
    """As a runner does it."""
    environment = os.environ | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env=environment | {"GITHUB_ACTIONS": "true"},
        capture_output=True,
        text=True,
        check=False,
    )


def project(folder: Path) -> Path:
    (folder / "my_models.py").write_text(MODELS)
    (folder / "tokenpass.check.yaml").write_text(CHECK_FILE)
    return folder


def test_it_is_a_workflow() -> None:
    checker = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*checker, str(SOURCE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_actions_are_pinned_and_rights_are_few() -> None:
    used = [s["uses"] for job in workflow()["jobs"].values() for s in job["steps"] if "uses" in s]
    assert used and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", one) for one in used)
    assert workflow()["permissions"] == {"contents": "read"}
    for job in workflow()["jobs"].values():
        for one in job["steps"]:
            assert "${{" not in one.get("run", ""), "nothing is put into a script as text"
            if "checkout" in one.get("uses", ""):
                assert one["with"]["persist-credentials"] is False


def test_the_step_of_a_pull_request(tmp_path: Path) -> None:
    folder = project(tmp_path)
    assert bash("tokenpass check --no-timing --update-baseline", folder).returncode == 0
    script = step("facts", "Check plans, kernels and outputs")
    done = bash(script, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "tokenpass-out" / "facts.xml").exists() and "::error" not in done.stdout
    (folder / "my_models.py").write_text(MODELS.replace("Linear(16, 16)", "Linear(16, 32)"))
    done = bash(script, folder)
    assert done.returncode == 1
    assert "::error file=tokenpass.check.yaml,line=3,title=one%3A facts failed" in done.stdout


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (3, 0), (4, 4), (5, 5)])
def test_inconclusive_is_no_failure_of_the_night(tmp_path: Path, code: int, ends: int) -> None:
    fake = tmp_path / "bin" / "tokenpass"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\nexit {code}\n')
    fake.chmod(0o755)
    assert bash(step("speed", "Check the speed-up"), tmp_path, fake.parent).returncode == ends
    said = (tmp_path / "said").read_text().split()
    assert said[0] == "check" and {"--history", "--plot", "--junit"} <= set(said)


@pytest.mark.slow
def test_the_step_of_the_night(tmp_path: Path) -> None:
    folder = project(tmp_path)
    assert bash("tokenpass check --no-timing --update-baseline", folder).returncode == 0
    done = bash(step("speed", "Check the speed-up"), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("speed.xml", "history.jsonl", "history.svg"):
        assert (folder / "tokenpass-out" / name).exists()


def test_the_hook(tmp_path: Path, repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("hooks are taken from a repository, and this is none")
    folder = project(tmp_path)
    assert bash("tokenpass check --no-timing --update-baseline", folder).returncode == 0
    environment = f"export PRE_COMMIT_HOME={tmp_path / 'home'} GIT_CONFIG_GLOBAL=/dev/null"
    try_it = f"pre-commit try-repo {repository} tokenpass-check --files my_models.py"
    prepared = f"{environment}; git init -q . && git add my_models.py"
    done = bash(f"{prepared} && {try_it}", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"tokenpass check\.+Passed", done.stdout)
    (folder / "my_models.py").write_text(MODELS.replace("Linear(16, 16)", "Linear(16, 32)"))
    done = bash(f"{environment}; {try_it}", folder)
    assert done.returncode == 1 and "facts" in done.stdout
