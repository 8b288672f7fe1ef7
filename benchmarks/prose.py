"""Prose that lies on any machine: the standard library's docstrings and `pydoc_data.topics`.

Docstrings are found by parsing the library's sources, never by importing them, in a fixed order:
the same Python version gives the same texts everywhere.
"""

from __future__ import annotations

import ast
import inspect
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "turtledemo"}
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SENTENCE_END = re.compile(r"(?<=[.!?])[)\"']?\s+(?=[A-Z\"'(])")
ABBREVIATION = re.compile(r"(?:\be\.g|\bi\.e|\betc|\bvs|\bcf|\bMr|\bDr|\bNo)\.$")
TRANSCRIPT = re.compile(r"^\s*(?:>>>|\.\.\. |\$ )", re.M)
PROSE_LETTERS = 0.75
"""Share of letters and spaces among a paragraph's characters, at least."""
SECTION_WORDS = 20
"""Shorter docstrings say little about what they document."""
BULLET = re.compile(r"^(?:[*\-+]|\d+[.)])\s+")


@dataclass(frozen=True)
class Document:
    """One text as sections of sentences; the first sentence of a section says what it is about.

    A module is one document with a section for each documented object: its first sentence, its
    name, then the rest. A topic is one document with a section for each paragraph.
    """

    source: str
    sections: tuple[tuple[str, ...], ...]


def documents() -> Iterator[Document]:
    """All texts with at least one prose section: topics by name, then modules by path."""
    for name, text in sorted(pydoc_data.topics.topics.items()):
        sections = tuple(tuple(split_sentences(block)) for block in prose_blocks(text))
        if sections:
            yield Document(f"topic:{name}", sections)
    yield from _modules()


def split_sentences(text: str) -> list[str]:
    """Sentences of one paragraph; an abbreviation's dot does not end one."""
    sentences: list[str] = []
    for piece in SENTENCE_END.split(text):
        if sentences and ABBREVIATION.search(sentences[-1]):
            sentences[-1] += " " + piece
        else:
            sentences.append(piece)
    return sentences


def prose_blocks(text: str) -> list[str]:
    """The paragraphs of a text that read as prose, white space normalised, bullets removed."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return [BULLET.sub("", " ".join(block.split())) for block in blocks if is_prose(block)]


def is_prose(block: str) -> bool:
    """Whether a paragraph is English rather than a transcript, a grammar, a table or code."""
    if TRANSCRIPT.search(block) or "::=" in block:
        return False
    letters = sum(character.isalpha() or character == " " for character in block)
    return letters >= PROSE_LETTERS * len(block)


def library_sources() -> Iterator[tuple[PurePath, Path]]:
    """(place below the library's root, file) of each module of the standard library, by place.

    Tests and installed packages are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = {path.relative_to(root): path for path in root.rglob("*.py")}
    for place in sorted(found, key=PurePath.as_posix):
        if not SKIPPED_FOLDERS & set(place.parts[:-1]):
            yield place, found[place]


def _modules() -> Iterator[Document]:
    """A document for each module that has sections, by place."""
    for place, path in library_sources():
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # deliberately broken samples ship with some Pythons
            continue
        sections = tuple(dict.fromkeys(_sections(tree, place.stem)))
        if sections:
            yield Document(place.as_posix(), sections)


def _sections(tree: ast.Module, module: str) -> Iterator[tuple[str, ...]]:
    """(first sentence, name, other sentences) of each object with a docstring of some length."""
    found = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    for node in sorted(found, key=lambda node: getattr(node, "lineno", 0)):
        blocks = prose_blocks(ast.get_docstring(node, clean=False) or "")
        if sum(len(block.split()) for block in blocks) >= SECTION_WORDS:
            first, *rest = [line for block in blocks for line in split_sentences(block)]
            yield (first, f"{getattr(node, 'name', module)}:", *rest)
