"""The machine's fingerprint."""

from benchmarks.machine import fingerprint


def test_the_fingerprint_names_what_is_needed():
    assert {"cpu", "cores", "threads", "torch", "commit", "date"} <= set(fingerprint())
