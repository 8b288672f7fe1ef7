"""Models shared between two processes: the same edits on both, and one process's results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    command = [sys.executable, "-W", "ignore", "-m", "tests.models.children.rank", str(store)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, **pipes)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, said, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


READ = ("mean", "first")


@pytest.mark.parametrize("read", READ)
def test_nothing_is_lost_at_full_budget(ranks: list[dict[str, Any]], read: str) -> None:
    for found in ranks:
        assert found[read]["exact"] < 1e-12
        assert found[read]["kept"] == ("edited" if read == "first" else "dense")  # dead tokens


@pytest.mark.parametrize("read", READ)
def test_both_ranks_give_what_one_process_gives(ranks: list[dict[str, Any]], read: str) -> None:
    """Policies that look at keys or at attention see the heads of all ranks."""
    first, second = (found[read] for found in ranks)
    assert first["edits"] and first["edits"] == second["edits"]
    for found in (first, second):
        assert found["same"] and found["distance"] < 1e-9 < found["changed"]
        assert "barrier" not in found["codes"]
