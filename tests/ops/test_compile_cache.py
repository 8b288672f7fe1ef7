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

def merge(x):
    score, partner = bipartite_match(x.relu())
    return x[:, 1::2].gather(1, partner[..., None].expand(-1, -1, x.shape[-1])) + score[..., None]

x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
assert torch.allclose(torch.compile(merge, dynamic=True)(x), merge(x))
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
