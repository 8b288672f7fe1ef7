"""The reader of tokenpass's own reports."""

from benchmarks.reported import Listener, Reported, listen, summarise
from tokenpass.edits import Edit, Plan
from tokenpass.report import LOG, GraphReport, LayerRow

EDIT = Edit("token_merge", "layers.0/stream/0", "tome", "128")


def test_reports_of_several_graphs_add_up():
    rows = (LayerRow(0, "layers.0", "256", "128", 1.0, 0.5),)
    plan = Plan("a", (EDIT,), dense_cost=3.0, planned_cost=1.0)
    first = GraphReport("edited", plan, seconds=1.0, layers=rows)
    second = GraphReport("dense", Plan("b", dense_cost=1.0, planned_cost=1.0), seconds=0.5)
    found = summarise([first, second])
    assert (found.share, found.own_s, found.distinct_levels) == (0.5, 1.5, 1)
    assert found.layers == ("0: 256 -> 128",)
    assert "token_merge/tome at layers.0/stream/0" in found.edits[0]
    assert found.trouble == ()


def test_no_reports_give_no_numbers():
    assert summarise([]) == Reported()
    assert Listener().reported() == Reported()


def test_only_what_came_meanwhile_is_listened_to():
    LOG.add(GraphReport("dense", Plan("a", dense_cost=2.0, planned_cost=2.0)))
    plan = Plan("a", (EDIT,), dense_cost=2.0, planned_cost=1.0)
    found = listen(lambda: LOG.add(GraphReport("edited", plan)))
    assert found.share == 0.5


def test_a_fallback_is_named():
    LOG.clear()
    found = listen(lambda: LOG.add(GraphReport("fallback", Plan("a"), cause="no rule")))
    assert found.trouble == ("no rule",)
    assert found.share is None
