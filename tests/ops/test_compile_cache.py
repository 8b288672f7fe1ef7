"""A compiled graph that contains an operator of ours is found in Inductor's caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CHILD = """
import json, torch
from torch._dynamo.utils import counters
from tokenpass.ops.bipartite_match import bipartite_match

def match(x):  # no pointwise neighbours: nothing for the C++ compiler to spend seconds on
    return bipartite_match(x @ x)[1]

x = torch.eye(4).expand(2, 4, 4).contiguous()
assert torch.equal(torch.compile(match)(x), match(x))
print(json.dumps({**counters["aot_autograd"], **counters["inductor"]}))
"""


def run_child(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    result = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_second_process_hits_both_caches(tmp_path):
    first, second = run_child(tmp_path), run_child(tmp_path)
    assert first["autograd_cache_miss"] == 1 and first["autograd_cache_saved"] == 1
    assert second["autograd_cache_hit"] == 1 and second["fxgraph_cache_hit"] == 1
    assert "autograd_cache_bypass" not in first | second
