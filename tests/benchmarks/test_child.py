"""Memory arithmetic of a measured process."""

from benchmarks.child import peak_of


def test_the_peak_is_the_largest_running_sum():
    assert peak_of([5, 5, -5, 3, -8, 9]) == 10
    assert peak_of([]) == 0
