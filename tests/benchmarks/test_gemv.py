"""The benchmark of sparse products: what is measured, rotated and judged."""

import pytest
import torch

from benchmarks.gemv import Case, Rotation, lines, masked_inputs, measure
from benchmarks.machine import last_level_cache_bytes
from benchmarks.timing import Pace
from tokenpass.lower.kernels import installed_kernels


def test_floors_follow_from_the_share_of_zeros() -> None:
    floors = [Case(8, 8, torch.float32, s).floor for s in (0.0, 0.5, 0.9)]
    assert floors == pytest.approx([1.0, 1.8, 9.0])


def test_masks_have_their_share_of_zeros_in_other_places() -> None:
    inputs = masked_inputs(Case(1000, 8, torch.bfloat16, 0.7), 5)
    assert [int((x == 0).sum()) for x in inputs] == [700] * 5
    assert len({tuple((x == 0)[0].tolist()) for x in inputs}) == 5


def test_weights_and_inputs_are_rotated() -> None:
    seen = []
    functions = [lambda x, w=w: seen.append((w, float(x))) or x for w in "ab"]
    turn = Rotation(functions, [torch.tensor(float(at)) for at in range(3)])
    for _ in range(6):
        turn()
    assert len(set(seen)) == 6


def test_a_small_case_is_measured_whole() -> None:
    installed_kernels()
    pace = Pace(pairs=3, least=2, seconds=1)
    result = measure(Case(96, 64, torch.float32, 0.5), 3 * 96 * 64 * 4, pace)
    assert result["copies"] == 5  # one and a half times the cache, rounded up
    assert set(result["baselines_ms"]) == {"eager", "inductor", "frozen"}
    assert result["baseline"] in result["baselines_ms"]
    assert 0 <= result["largest_difference"] < 1e-4
    assert result["met"] == (result["speedup"]["speedup"] >= 1.8)
    (line,) = lines([result])
    assert "64 x 96 float32, 50% zeros" in line and ("MISSED" in line) != result["met"]


def test_the_cache_is_found() -> None:
    assert last_level_cache_bytes() >= 2**15
