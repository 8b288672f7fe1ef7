"""The reader of tokenpass's own reports."""

from dataclasses import dataclass

from benchmarks.reported import Reported, last_reported, summarise
from tokenpass.edits import Edit, Plan


@dataclass
class FakeReport:
    plan: Plan
    own_seconds: object


def test_reports_of_several_graphs_add_up():
    edit = Edit("token_merge", "layers.0/stream/0", "tome", "128")
    first = FakeReport(Plan("a", (edit,), dense_cost=3.0, planned_cost=1.0), {"plan": 1.0})
    second = FakeReport(Plan("b", dense_cost=1.0, planned_cost=1.0), 0.5)
    found = summarise([first, second])
    assert (found.share, found.own_s, found.distinct_levels) == (0.5, 1.5, 1)
    assert found.edits == ("token_merge/tome at layers.0/stream/0: 128",)


def test_no_reports_give_no_numbers():
    assert summarise([]) == Reported()
    assert isinstance(last_reported(), Reported)
