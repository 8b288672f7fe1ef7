"""The file of a calibration: what is written is read; everything else is refused by its place."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpass.errors import ConfigError
from tokenpass.statistics import (
    STATISTICS,
    Calibration,
    Histogram,
    Observed,
    SiteStatistics,
    weight_fingerprint,
)
from tokenpass.statistics.texts import read_row, row_text
from tokenpass.yaml_file import read_yaml

NAMES = (
    "model.layers.0.up:projection",
    "model.layers.0.gate:projection#1",
    "a['x: #y']:projection",
)


def site(seed: int = 0, entries: int = 12, rows: int = 40) -> SiteStatistics:
    generator = torch.Generator().manual_seed(seed)
    hidden, gate, up = torch.randn(3, rows, entries, generator=generator)
    seen = Observed(hidden, gate, up, neurons=True)
    values: dict[str, Any] = {one.name: one.of(seen) for one in STATISTICS}
    weight = torch.randn(4, entries, generator=generator)
    return SiteStatistics(weight_fingerprint(weight), **values, sensitivity=0.1 + seed / 3)


def calibration() -> Calibration:
    first = site()
    second = replace(site(1), magnitude=first.magnitude, core=None, sensitivity=None)
    third = SiteStatistics("3x0-empty", Histogram.empty(0))
    return Calibration(dict(zip(NAMES, (first, second, third), strict=True)), 3, 120, False)


def same(one: Calibration, other: Calibration) -> bool:
    assert set(one.sites) == set(other.sites)
    for name, mine in one.sites.items():
        theirs = other.sites[name]
        assert (mine.weight, mine.sensitivity) == (theirs.weight, theirs.sensitivity)
        for kind in STATISTICS:
            a, b = getattr(mine, kind.name), getattr(theirs, kind.name)
            assert (a is None) == (b is None)
            assert a is None or (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)
    head = ("batches", "tokens", "complete", "fingerprint")
    return all(getattr(one, key) == getattr(other, key) for key in head)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.yaml"
    calibration().save(path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Calibration.load(path)
    return str(caught.value)


def changed(path: Path, before: str, after: str) -> str:
    """The refusal of the file with one text in the place of another, once."""
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    return refused(path)


def test_what_is_written_is_read(file: Path) -> None:
    read = Calibration.load(file)
    assert same(calibration(), read)
    again = file.with_name("again.yaml")
    read.save(again)
    assert again.read_bytes() == file.read_bytes()


def test_values_not_finite_are_read_back(tmp_path: Path) -> None:
    hidden = torch.tensor([[float("nan"), 1.0, 2.0], [0.5, 1.0, float("inf")]])
    before = Calibration({"a": SiteStatistics("2x3-0", Histogram.of(hidden))}, 1, 2)
    before.save(tmp_path / "c.yaml")
    assert same(before, Calibration.load(tmp_path / "c.yaml"))


def test_shared_values_are_written_once_and_stay_shared(file: Path) -> None:
    read = Calibration.load(file)
    assert read.sites[NAMES[0]].magnitude is read.sites[NAMES[1]].magnitude
    assert file.read_text().count("same_as") == 1


def test_a_file_is_replaced_in_one_step(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def fails(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(KeyboardInterrupt):
        Calibration().save(file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_every_cut_is_noticed(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for count in range(len(lines)):
        file.write_text("".join(lines[:count]), encoding="utf-8")
        assert str(file) in refused(file)
    file.write_text("".join(lines[:-1]), encoding="utf-8")
    assert "checksum: missing; the file was cut off" in refused(file)


def test_every_changed_number_is_noticed(file: Path) -> None:
    assert "checksum: the file was changed" in changed(file, "tokens: 120", "tokens: 121")


def test_another_version(file: Path) -> None:
    text = changed(file, "version: 1", "version: 2")
    assert f"{file}:4: version: the file is of version 2" in text and "upgrade" in text
    assert "this is no calibration file" in changed(file, "version: 2", "version: one")


CHANGES = [
    ("batches: 3", "batches: -3", ":6: batches: expected a count, got -3"),
    ("batches: 3", "batches: true", ":6: batches: expected a count, got True"),
    ("complete: false", "complete: maybe", ":8: complete: expected bool, got 'maybe'"),
    ("complete: false", "extra: 1", ":8: extra: unknown key"),
    ("    weight: ", "    heavy: ", "unknown key; expected weight, sensitivity"),
    ("sensitivity: ", "sensitivity: -", "sensitivity: expected a number from 0"),
    ("sensitivity: ", "sensitivity: 1e999 #", "sensitivity: expected a number from 0"),
    ("channels: 12", "channels: 13", "expected 13 numbers, got 12"),
    ("channels: 12", "channels: 999999999999", "channels: expected a whole number from 0"),
    ("first_bin: ", "first_bin: 999 #", "first_bin: expected a whole number from 0 to 161"),
    ("      - '", "      - '1 x ", "counts[0]: expected whole numbers between blanks"),
    ("      - '", "      - '99999999999999999999 ", "counts[0]: expected whole numbers"),
    ("      - '", "      - '-9223372036854775808 ", "counts[0]: expected 12 numbers"),
    ("      - '", "      - 5 #", "counts[0]: expected numbers in quotes, got 5"),
    ("same_as: ", "same_as: none #", "same_as: no site above this one is 'none'"),
    ("same_as: ", "like: ", "unknown key; expected channels"),
    ("version: 1", "version: 1\nversion: 1", "version: this key stands twice"),
    ("batches: 3", "batches: !!python/name:os.system", ":6: not valid YAML"),
    ("batches: 3", "batches: &a 3\ntokens: *a #", "aliases (*name) are not allowed"),
    ("model: ", "model: '0'\n#", "model: expected"),
]


@pytest.mark.parametrize(("before", "after", "told"), CHANGES)
def test_changes_are_refused_with_their_place(
    file: Path, before: str, after: str, told: str
) -> None:
    text = changed(file, before, after)
    assert text.startswith(f"{file}:") and told in text, text


def test_a_count_that_is_changed_is_told_by_its_site(file: Path) -> None:
    text = changed(file, "'1 ", "'2 ")
    assert "magnitude.counts: expected as many entries in every channel" in text


def test_both_yaml_readers_say_the_same(file: Path) -> None:
    slow, fast = read_yaml(file), read_yaml(file, large=True)
    assert slow.data == fast.data and slow.lines == fast.lines


def test_no_file(tmp_path: Path) -> None:
    assert "file not found" in refused(tmp_path / "none.yaml")


def test_a_projection_is_found_by_its_name_and_weight() -> None:
    first, second, third = (site(seed) for seed in range(3))
    sites = {"a": first, f"a@{second.weight}": second, "b": third, "c": third}
    found = Calibration(sites)
    assert found.find("a", first.weight) is first and found.find("a", second.weight) is second
    assert found.find("layers.3.a", second.weight) is second
    assert found.find("c", third.weight) is third
    assert found.find("d", third.weight) is None  # two have that weight
    assert found.find("a", "4x12-0") is None


def test_two_calls_of_one_projection() -> None:
    first, second = site(0), replace(site(0), sensitivity=None, gate=None)
    both = first.merged(second)
    assert both.rows == 80 and both.magnitude == first.magnitude + second.magnitude
    assert both.gate == first.gate and both.sensitivity == first.sensitivity
    assert both.core is not None and first.core is not None
    assert torch.equal(both.core, first.core * 2)


def test_sites_that_share_a_value_share_the_sum() -> None:
    a, b = site(0), site(1)
    sums: dict[tuple[int, int], Any] = {}
    more_a, more_b = (replace(one, magnitude=b.magnitude) for one in (a, b))
    one = replace(a, magnitude=a.magnitude).merged(more_a, sums)
    other = replace(b, magnitude=a.magnitude).merged(more_b, sums)
    assert one.magnitude is other.magnitude and one.magnitude == a.magnitude + b.magnitude


def test_a_weight_is_known_again_in_another_dtype_and_layout() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 30)
    mark = weight_fingerprint(weight)
    assert mark.startswith("40x30-")
    assert weight_fingerprint(weight.bfloat16()) == mark
    assert weight_fingerprint(weight.t().contiguous().t()) == mark
    assert weight_fingerprint(torch.nn.Parameter(weight)) == mark
    half = weight.half()
    assert weight_fingerprint(half) == weight_fingerprint(half.float())
    assert weight_fingerprint(weight * 1.01) != mark
    assert weight_fingerprint(weight.view(30, 40)) != mark
    assert weight_fingerprint(torch.zeros(0, 3)) == "0x3-empty"
    assert weight_fingerprint(torch.ones(1, 1)).startswith("1x1-")


def test_the_fingerprint_is_of_names_and_weights_alone() -> None:
    one = calibration()
    reordered = replace(one, sites=dict(reversed(one.sites.items())), batches=9)
    assert reordered.fingerprint == one.fingerprint
    other = {**one.sites, NAMES[0]: replace(one.sites[NAMES[0]], weight="4x12-0")}
    assert replace(one, sites=other).fingerprint != one.fingerprint


@given(st.lists(st.one_of(st.just(0), st.integers(0, 2**62)), max_size=40))
def test_rows_as_text(row: list[int]) -> None:
    def wrong(text: str, *at: Any) -> Any:
        raise AssertionError(text)

    counts = torch.tensor(row, dtype=torch.int64)
    assert torch.equal(read_row(row_text(counts), len(row), wrong), counts)
