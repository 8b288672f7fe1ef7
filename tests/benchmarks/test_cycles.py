"""Memory over compile-and-reset cycles."""

from benchmarks.cycles import Growth, grow


def test_growth_is_measured_behind_the_first_cycles() -> None:
    found = grow("tokenpass-eager", 3)
    assert (found.backend, found.cycles) == ("tokenpass-eager", 3)
    assert 0 < found.first_mib < found.last_mib * 2
    assert Growth("any", 10, 100.0, 105.0).ratio == 1.05
