"""The retrieval corpus of the demo: passages of exactly 256 tokens, each found by a sentence.

A passage is cut at the start of a paragraph: the paragraph's first sentence becomes the query and
is taken out, the tokens that follow it become the passage. No passage is padded, so a speed-up
measured on them is never padding removed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from benchmarks.prose import Document, documents

PASSAGE_TOKENS = 256
"""Length of every passage in tokens, [CLS] and [SEP] included."""
BODY_TOKENS = PASSAGE_TOKENS - 2
LONG_WORD = re.compile(r"[a-z]{5,}")
SHARED_WORDS = 0.6
"""Share of a query's words of five letters or more that its passage has to hold."""
LEANING = frozenset(
    {"this", "these", "that", "those", "it", "they", "he", "such", "if", "note", "see", "also"}
    | {"when", "otherwise"}
)
"""First words of sentences that mean little without what stands before them."""
QUERY_WORDS = range(6, 41)
SHINGLE = 6
LARGEST_OVERLAP = 0.3
"""Share of a passage's token shingles that earlier passages may already hold."""


class Tokenizer(Protocol):
    """What is needed of MiniLM's tokenizer: ids of texts, and those of [CLS] and [SEP]."""

    cls_token_id: int
    sep_token_id: int

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """Token ids of each text under the key `input_ids`."""
        ...


@dataclass(frozen=True)
class Passage:
    """One text to find: `tokens` are its 256 ids, `query` the sentence that was taken out of it."""

    source: str
    query: str
    tokens: tuple[int, ...]


def build_corpus(
    tokenizer: Tokenizer,
    *,
    limit: int | None = None,
    texts: Iterable[Document] | None = None,
) -> tuple[Passage, ...]:
    """All passages, in the order of their texts; with `limit`, that many spread evenly over them.

    `texts` are those of the standard library if none are given.

    Queries are unique, none of them stands in its passage, and no passage repeats another: one
    that shares more than 30 % of its six-token runs with earlier ones is left out.
    """
    kept: list[Passage] = []
    queries: set[str] = set()
    shingles: set[tuple[int, ...]] = set()
    for passage in _candidates(documents() if texts is None else texts, tokenizer):
        runs = _shingles(passage.tokens)
        overlap = len(runs & shingles) / len(runs)
        key = passage.query.casefold()
        if key in queries or overlap > LARGEST_OVERLAP:
            continue
        queries.add(key)
        shingles |= runs
        kept.append(passage)
    if limit is None or limit >= len(kept):
        return tuple(kept)
    return tuple(kept[index * len(kept) // limit] for index in range(limit))


def corpus_digest(passages: Iterable[Passage]) -> str:
    """A short fingerprint of queries and tokens: two results are comparable when it is the same."""
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(repr((passage.query, passage.tokens)).encode())
    return digest.hexdigest()[:16]


def _candidates(texts: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Passage]:
    for text in texts:
        sentences = [sentence for section in text.sections for sentence in section]
        sizes = [len(section) for section in text.sections]
        starts = frozenset(accumulate(sizes[:-1], initial=0))
        ids = tokenizer(sentences, add_special_tokens=False)["input_ids"]
        for query, body in _cuts(sentences, ids, starts):
            tokens = (tokenizer.cls_token_id, *body, tokenizer.sep_token_id)
            yield Passage(text.source, query, tokens)


def _cuts(
    sentences: Sequence[str], ids: Sequence[Sequence[int]], starts: frozenset[int]
) -> Iterator[tuple[str, list[int]]]:
    """(query, body) pairs of one text, without overlap between bodies.

    WordPiece works word by word, so the ids of sentences concatenate to the ids of the text.
    """
    index = 0
    while index < len(sentences):
        query, asked = sentences[index], ids[index]
        start, index = index, index + 1
        if start not in starts or not is_query(query):
            continue
        body: list[int] = []
        after = index
        while after < len(sentences) and len(body) < BODY_TOKENS:
            body += ids[after]
            after += 1
        if len(body) < BODY_TOKENS:
            return
        body = body[:BODY_TOKENS]
        if not _contains(body, asked) and is_findable(query, " ".join(sentences[index:after])):
            yield query, body
            index = after


def is_query(sentence: str) -> bool:
    """A complete sentence, long enough to mean something, that does not lean on one before it."""
    words = sentence.split()
    return (
        len(words) in QUERY_WORDS
        and words[0].strip("*\"'").casefold() not in LEANING
        and sentence.rstrip("\"')*`").endswith((".", "!", "?"))
    )


def is_findable(query: str, body: str) -> bool:
    """Whether enough of the query's longer words stand in the passage that it is to find."""
    wanted = set(LONG_WORD.findall(query.casefold()))
    found = wanted & set(LONG_WORD.findall(body.casefold()))
    return len(wanted) >= 2 and len(found) >= SHARED_WORDS * len(wanted)


def _contains(body: Sequence[int], part: Sequence[int]) -> bool:
    size = len(part)
    wanted = list(part)
    return any(list(body[at : at + size]) == wanted for at in range(len(body) - size + 1))


def _shingles(tokens: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(tokens[at : at + SHINGLE]) for at in range(len(tokens) - SHINGLE + 1)}
