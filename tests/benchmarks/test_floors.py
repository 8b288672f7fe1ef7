"""The floors: what is met, what is missed, what was never measured, and the exit code."""

import json

import pytest

from benchmarks.floors import FLOORS, METRICS, judge, main


def result(**changes):
    base = {
        "case": "vit_b_224_b8",
        "budget": 0.5,
        "layers": 12,
        "dead_token_speedup": 1.075,
        "speedup": {"speedup": 1.8},
        "predicted_share": 0.5,
        "distinct_levels": 3,
        "exactness": None,
        "child": {"compile_cpu_s": 14.0, "own_s": 2.0, "peak_tensor_mib": 90.0},
        "dense_child": {"compile_cpu_s": 10.0, "own_s": None, "peak_tensor_mib": 100.0},
    }
    return base | changes


def outcomes(*results):
    return {(one.floor.name, one.case): one.outcome for one in judge(results)}


def test_a_good_result_meets_every_floor_that_speaks_about_it():
    found = outcomes(result(predicted_share=0.54))
    assert set(found.values()) == {"met"}
    assert ("halved cost pays", "vit_b_224_b8 @ 0.5") in found
    assert ("nothing lost at full budget", "vit_b_224_b8 @ 0.5") not in found


@pytest.mark.parametrize(
    ("changes", "floor"),
    [
        ({"speedup": {"speedup": 1.7}}, "halved cost pays"),
        ({"budget": 1.0, "speedup": {"speedup": 0.97}}, "nothing lost at full budget"),
        ({"budget": 1.0, "speedup": {"speedup": 1.03}}, "dead tokens pay"),
        ({"case": "vit_s_224_b1", "speedup": {"speedup": 0.96}}, "small graphs never worse"),
        ({"predicted_share": 0.4}, "prediction"),
        ({"child": {"compile_cpu_s": 16.0}}, "compile time, few counts"),
        ({"distinct_levels": 9, "child": {"compile_cpu_s": 26.0}}, "compile time"),
        ({"layers": 6, "child": {"own_s": 1.6}}, "own compile seconds"),
        ({"child": {"peak_tensor_mib": 101.0}}, "peak memory"),
        ({"budget": 1.0, "exactness": {"holds": False}}, "exact at full budget"),
    ],
)
def test_each_floor_can_be_missed(changes, floor):
    bad = result(**changes)
    assert outcomes(bad)[floor, f"{bad['case']} @ {bad['budget']:g}"] == "missed"


def test_many_counts_may_compile_slower():
    found = outcomes(result(distinct_levels=9, child={"compile_cpu_s": 20.0}))
    assert found["compile time", "vit_b_224_b8 @ 0.5"] == "met"
    assert ("compile time, few counts", "vit_b_224_b8 @ 0.5") not in found


def test_what_was_not_measured_is_said():
    found = outcomes(result(child=None, dense_child=None, predicted_share=None))
    assert found["peak memory", "vit_b_224_b8 @ 0.5"] == "not measured"
    assert found["median prediction", "all"] == "not measured"


def test_the_median_prediction_is_over_all_results():
    results = [result(predicted_share=share) for share in (1 / 1.8, 1 / 1.9, 1 / 2.0)]
    assert outcomes(*results)["median prediction", "all"] == "met"
    assert outcomes(results[2])["median prediction", "all"] == "missed"


def test_every_floor_names_a_metric():
    assert {floor.metric for floor in FLOORS} <= set(METRICS)


@pytest.mark.parametrize(("speed", "code"), [(1.8, 0), (1.2, 1)])
def test_check_sets_the_exit_code(tmp_path, capsys, speed, code):
    path = tmp_path / "results.json"
    good = result(speedup={"speedup": speed}, predicted_share=1 / speed)
    path.write_text(json.dumps({"results": [good]}))
    assert main([str(path), "--check"]) == code
    assert main([str(path)]) == 0
    assert "halved cost" in capsys.readouterr().out
