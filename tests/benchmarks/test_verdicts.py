"""Replayed decisions on records whose truth is known, and a slow-down that is really planted."""

from __future__ import annotations

import itertools
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.verdicts import record
from benchmarks.verdicts.confirm import CHECK_FILE, slowed
from benchmarks.verdicts.load import competing
from benchmarks.verdicts.replay import BLOCK, clocked, decision, in_blocks, in_order, rates
from tokenpass.check.check_file import read_check_file


def process(noise: float, seed: int = 0, ratio: float = 1.0) -> record.Process:
    draw = random.Random(seed)

    def pair(ratio: float) -> tuple[int, int]:
        one, other = (10_000 * math.exp(draw.gauss(0, noise)) for _ in range(2))
        return round(one * ratio), round(other)

    return record.Process(
        noise=[pair(1.0) for _ in range(record.NOISE_PAIRS)],
        pairs=[pair(ratio) for _ in range(record.PAIRS)],
    )


def test_blocks_are_neighbours() -> None:
    pairs = [(at, at) for at in range(100)]
    drawn = list(itertools.islice(in_blocks(random.Random(1))(pairs), 4 * BLOCK))
    for start in range(0, len(drawn), BLOCK):
        block = [at for at, _ in drawn[start : start + BLOCK]]
        assert block == [(block[0] + i) % 100 for i in range(BLOCK)]


def test_a_run_finds_the_record_s_ratio() -> None:
    found = clocked(process(0.01, ratio=1.2), in_order, 0.0, None)
    assert found.now.ratio == pytest.approx(1.2, rel=0.01)
    assert found.noise.low < 1 < found.noise.high
    slower = clocked(process(0.01, ratio=1.2), in_order, 0.2, None)
    assert slower.now.ratio == pytest.approx(1.0, rel=0.01)


def test_decisions() -> None:
    before, now = process(0.01, 1), process(0.01, 2)
    assert decision(before, now, in_order, 0.0)[0] == "passed"
    assert decision(before, now, in_order, 0.1)[0] == "failed"
    assert decision(process(1.0, 3), now, in_order, 0.0) is None, "no baseline is taken down"


def test_rates() -> None:
    found = rates([("passed", 48), ("failed", 96), ("passed", 48), None])
    assert found["decisions"] == 3 and found["no_baseline"] == 0.25
    assert found["failed"] == pytest.approx(1 / 3) and found["median_pairs"] == 48
    assert found["failed_interval"][0] < 1 / 3 < found["failed_interval"][1]


def test_a_planted_slow_down() -> None:
    def backend(module: Any, inputs: Any) -> Any:
        return lambda *args: time.sleep(0.02)

    started = time.perf_counter()
    slowed(backend, 1.0)(None, ())()
    assert time.perf_counter() - started >= 0.04


def test_the_check_file_is_one(tmp_path: Path) -> None:
    path = tmp_path / "tokenpass.check.yaml"
    path.write_text(CHECK_FILE)
    assert read_check_file(path).names == ("minilm",)


def test_pairs_are_taken() -> None:
    found = record.taken(lambda: time.sleep(1e-3), lambda: None, random.Random(0), 5)
    assert len(found) == 5 and all(one >= 1000 > other for one, other in found)


def test_a_neighbour_is_there_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Child:
        def __init__(self, command: list[str]) -> None:
            events.append(f"started {command[-1]}")

        def kill(self) -> None:
            events.append("killed")

        def wait(self) -> None:
            events.append("gone")

    monkeypatch.setattr("benchmarks.verdicts.load.subprocess.Popen", Child)
    with competing("quiet", 0):
        assert events == []
    with pytest.raises(ValueError, match="inside"), competing("loaded", 7):
        raise ValueError("inside")
    assert events == ["started 7", "killed", "gone"]
