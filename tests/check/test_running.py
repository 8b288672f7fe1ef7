"""Which baseline's ratio counts, and what a run takes down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.check.samples import SPEED, baseline
from tokenpass.check.baseline import CaseBaseline
from tokenpass.check.check_file import Case, read_check_file
from tokenpass.check.inputs import described
from tokenpass.check.loading import Loader, LoadFailed, as_call
from tokenpass.check.outcome import CaseResult
from tokenpass.check.pairs import Interval
from tokenpass.check.running import How, Running, taken_down
from tokenpass.check.speed import Floor, too_wide


def case(folder: Path, gates: str = "{}", budget: float = 0.5) -> Case:
    path = folder / "tokenpass.check.yaml"
    path.write_text(
        "version: 1\ncases:\n"
        f"  a: {{model: 'a:b', options: {{budget: {budget}}}, gates: {gates}}}\n"
    )
    return read_check_file(path).cases[0]


def loader() -> Loader:
    def none(_: Any) -> Any:
        raise AssertionError("nothing is loaded here")

    return Loader(none, none, none, str)


def running(one: Case, old: CaseBaseline | None, inputs: str = SPEED.inputs) -> Running:
    now = baseline().cases["a"].fingerprint
    found = Running(one, old, True, How(), now, loader(), lambda *_: None)
    found.inputs = inputs
    return found


def old(**other: Any) -> CaseBaseline:
    found = baseline().cases["a"]
    assert found.speed is not None
    if other:
        mark = found.fingerprint.model_copy(update=other)
        found = found.model_copy(
            update={"speed": found.speed.model_copy(update={"fingerprint": mark})}
        )
    return found


def test_the_floor_is_the_larger_one(tmp_path: Path) -> None:
    assert running(case(tmp_path), old()).floor().ratio == pytest.approx(1.5 * 0.95)
    low, high = "{min_speedup: 1.2, tolerance: 10%}", "{min_speedup: 1.45}"
    assert running(case(tmp_path, low), old()).floor().ratio == pytest.approx(1.5 * 0.9)
    assert running(case(tmp_path, high), old()).floor() == Floor(1.45, "min_speedup")
    assert running(case(tmp_path), None).floor().ratio is None


@pytest.mark.parametrize("other", [{"device": "x"}, {"threads": 7}, {"torch": "1"}])
def test_a_ratio_of_another_machine_does_not_count(tmp_path: Path, other: dict[str, Any]) -> None:
    one = running(case(tmp_path, "{min_speedup: 1.2}"), old(**other))
    floor = one.floor()
    assert floor.ratio == 1.2 and "another machine" in floor.told
    assert not one.improved(Interval(9.0, 8.0, 10.0, 48))


def test_a_ratio_of_other_inputs_does_not_count(tmp_path: Path) -> None:
    assert running(case(tmp_path), old(), inputs="float32[8]").floor().ratio is None


def test_an_improvement_is_beyond_the_tolerance(tmp_path: Path) -> None:
    one = running(case(tmp_path), old())
    assert one.improved(Interval(1.7, 1.6, 1.8, 48))
    assert not one.improved(Interval(1.6, 1.55, 1.65, 48))


def test_a_ratio_stays_with_its_options_and_its_machine(tmp_path: Path) -> None:
    before, nothing = old(threads=7), CaseResult("a", 1, ())
    assert before.speed is not None
    same = taken_down(case(tmp_path), before.facts, nothing, before, before.fingerprint)
    assert same.speed == before.speed and same.speed.fingerprint.threads == 7
    other = case(tmp_path, budget=0.4)
    assert taken_down(other, before.facts, nothing, before, before.fingerprint).speed is None
    assert taken_down(other, before.facts, nothing, None, before.fingerprint).speed is None


def test_inputs_in_words() -> None:
    model = torch.nn.Linear(2, 2).bfloat16()
    call = ((torch.zeros(3, 2),), {"ids": torch.zeros(4, dtype=torch.int64), "flag": True})
    assert described(model, call) == "float32[3, 2], int64[4]; parameters bfloat16"


def test_further_calls() -> None:
    x = torch.zeros(1)
    assert as_call({"a": x}) == ((), {"a": x})
    assert as_call((x,)) == ((x,), {}) and as_call(x) == ((x,), {})
    assert as_call(((x,), {"a": 1})) == ((x,), {"a": 1})
    given = Loader(lambda _: None, lambda _: 5, lambda _: 5, str)
    with pytest.raises(LoadFailed, match="expected a list"):
        given.calls("m:shapes")
    with pytest.raises(LoadFailed, match="expected a function, got int"):
        given.function("m:metric")


def test_a_ratio_that_is_not_narrow_is_no_baseline() -> None:
    assert too_wide(Interval(1.0, 0.98, 1.02, 768), 0.05) is None
    told = too_wide(Interval(1.0, 0.9, 1.2, 768), 0.05)
    assert told is not None and "30% wide" in told and "--time-limit" in told
