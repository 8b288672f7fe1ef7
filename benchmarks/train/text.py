"""The bytes that the decoders learn and are judged on: the standard library and its topics.

Held out is every module whose top-level name falls into one of sixteen parts by its hash, so a
package is on one side as a whole, and other versions of Python hold out the same names.
"""

from __future__ import annotations

import hashlib
import pydoc_data.topics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from benchmarks.prose import library_sources

SEPARATOR = b"\0"
"""Stands before each document; no text holds it."""
TABLES = frozenset({"encodings", "pydoc_data"})
"""Packages of generated tables. The topics' text is taken from the module instead."""
OF_THIS_BUILD = ("_sysconfigdata", "config-")
"""Files that say how this Python was built and differ between machines."""
PARTS = 16


@dataclass(frozen=True)
class Text:
    """Both sides as bytes; `digest` names them: results are comparable where it is the same."""

    training: bytes
    held_out: bytes
    digest: str


@dataclass(frozen=True)
class Source:
    """One document: `name` is its path in the library or its topic."""

    name: str
    content: bytes


@cache
def library_text() -> Text:
    """The text of this Python's standard library."""
    return split(sources())


def sources() -> Iterator[Source]:
    """Topics by name, then modules by path; a file with the separator in it is left out."""
    for name, text in sorted(pydoc_data.topics.topics.items()):
        yield Source(f"topic:{name}", text.encode())
    for place, path in library_sources():
        top = place.parts[0]
        if top in TABLES or top.startswith(OF_THIS_BUILD):
            continue
        content = path.read_bytes()
        if SEPARATOR not in content:
            yield Source(place.as_posix(), content)


def split(texts: Iterable[Source]) -> Text:
    """Both sides with a separator before each document, and their digest.

    Topics are never held out: many of them repeat paragraphs of one another.
    """
    training, held_out = bytearray(), bytearray()
    digest = hashlib.sha256()
    for source in texts:
        side = held_out if is_held_out(source.name) else training
        side += SEPARATOR + source.content
        digest.update(repr((source.name, len(source.content))).encode() + source.content)
    return Text(bytes(training), bytes(held_out), digest.hexdigest()[:16])


def is_held_out(name: str) -> bool:
    """Whether a document of that name is kept from training."""
    if name.startswith("topic:"):
        return False
    top = PurePath(PurePath(name).parts[0]).stem
    return hashlib.sha256(top.encode()).digest()[0] % PARTS == 0


def windows(text: bytes, tokens: int, *, limit: int | None = None) -> Tensor:
    """Consecutive windows without overlap, int64 [count, tokens + 1]: the last byte is only read.

    With `limit`, that many of them, spread evenly over the text.

    Raises:
        ValueError: The text is shorter than one window.
    """
    size = tokens + 1
    count = len(text) // size
    if count == 0:
        raise ValueError(f"a window needs {size} bytes, the text has {len(text)}: use fewer tokens")
    rows = as_tensor(text)[: count * size].view(count, size)
    if limit is not None and limit < count:
        rows = rows[[index * count // limit for index in range(limit)]]
    return rows.long()


def as_tensor(text: bytes) -> Tensor:
    """The bytes as uint8 [length]."""
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
