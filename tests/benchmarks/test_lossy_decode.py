"""What the benchmark of lossy decoding compiles, and what it calls a miss."""

from __future__ import annotations

import torch

from benchmarks.lossy_decode import FLOOR, SWEPT, Setting, again, line, met
from tokenpass.options import read_options
from tokenpass.passes.activation_sparsity.policies import POLICIES


def test_options_are_right() -> None:
    for setting in (Setting(None, 0.0), Setting("teal", 0.5)):
        options = setting.options("")
        options.pop("calibration", None)
        config = read_options(options)
        assert (config.passes is None) == (setting.policy is None)
    assert set(SWEPT) <= {policy.name for policy in POLICIES}


def test_a_floor_is_met_or_missed() -> None:
    ratio = {"speedup": 1.4, "low": 1.3, "high": 1.5, "pairs": 9, "dense_ms": 7, "variant_ms": 5}
    result = {
        "layers": 16,
        "dtype": "bfloat16",
        "setting": "teal 50%",
        "baseline": "inductor",
        "speedup": ratio,
        "predicted_speedup": 1.6,
        "floor": FLOOR,
    }
    assert not met(result) and "MISSED" in line(result)
    assert met({**result, "floor": None})


def test_what_is_not_measured_again_stays() -> None:
    stored = {"layers": 16, "dtype": "bfloat16", "policy": "teal"}
    assert again(stored, 16, [torch.bfloat16, torch.float32], {"teal", None})
    assert not again(stored, 16, [torch.float32], {"teal"})
    assert not again(stored, 4, [torch.bfloat16], {"teal"})
    assert not again(stored, 16, [torch.bfloat16], {"chess", None})
