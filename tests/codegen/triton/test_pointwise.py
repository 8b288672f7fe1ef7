"""Rendered Triton expressions, interpreted, against their evaluation in torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_interpreted_expressions_agree_with_torch(tmp_path):
    child = ROOT / "tests" / "codegen" / "children" / "pointwise.py"
    done = subprocess.run(
        [sys.executable, str(child), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 30
