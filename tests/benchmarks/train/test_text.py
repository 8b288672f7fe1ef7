"""The text: what is held out, what names it, how windows are cut."""

import hashlib

import pytest
import torch

from benchmarks.train.text import Source, is_held_out, library_text, sources, split, windows


@pytest.fixture(scope="module")
def text():
    return library_text()


def test_both_sides_hold_every_document_once(text):
    documents = list(sources())
    assert len({source.name for source in documents}) == len(documents) > 500
    total = sum(len(source.content) + 1 for source in documents)
    assert len(text.training) + len(text.held_out) == total
    assert text.training.count(b"\0") + text.held_out.count(b"\0") == len(documents)


def test_about_a_sixteenth_is_held_out(text):
    assert 0.03 < len(text.held_out) / len(text.training) < 0.16
    assert len(text.training) > 5_000_000


def test_packages_are_on_one_side_as_a_whole():
    sides = {}
    for source in sources():
        if not source.name.startswith("topic:"):
            top = source.name.split("/")[0].removesuffix(".py")
            sides.setdefault(top, set()).add(is_held_out(source.name))
    assert all(len(found) == 1 for found in sides.values())
    assert {top for top, found in sides.items() if True in found} >= {"http", "pathlib"}
    assert {top for top, found in sides.items() if False in found} >= {"asyncio", "argparse"}


def test_held_out_text_is_hardly_in_the_training_text(text):
    """Long lines alone: short ones (`return None`) are the same everywhere."""

    def lines(side):
        return [line.strip() for line in side.split(b"\n") if len(line.strip()) >= 40]

    known = set(lines(text.training))
    asked = lines(text.held_out)
    assert sum(line in known for line in asked) < 0.05 * len(asked)


def test_the_digest_names_content_and_names():
    documents = [Source("http/a.py", b"one"), Source("ast.py", b"two")]
    found = split(documents)
    assert (found.held_out, found.training) == (b"\0one", b"\0two")
    parts = b"".join(
        repr((source.name, len(source.content))).encode() + source.content for source in documents
    )
    assert found.digest == hashlib.sha256(parts).hexdigest()[:16]
    assert split([documents[0], Source("ast.py", b"twe")]).digest != found.digest
    assert split([documents[0], Source("asd.py", b"two")]).digest != found.digest


def test_windows_follow_each_other():
    assert windows(bytes(range(10)), 3).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows(bytes(range(10)), 3).dtype == torch.int64


def test_a_limit_spreads_over_the_text():
    assert windows(bytes(range(200)), 1, limit=4)[:, 0].tolist() == [0, 50, 100, 150]
    assert len(windows(bytes(200), 1, limit=1000)) == 100


def test_a_text_that_is_too_short_says_so():
    with pytest.raises(ValueError, match="needs 9 bytes, the text has 8: use fewer"):
        windows(bytes(8), 8)
