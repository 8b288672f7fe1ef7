"""The corpus: exact length, unique queries that are not in their passage, always the same."""

import re
from itertools import islice

import pytest

from benchmarks.corpus import (
    PASSAGE_TOKENS,
    build_corpus,
    corpus_digest,
    is_findable,
    is_query,
)
from benchmarks.encoder import passage_batches
from benchmarks.prose import documents, is_prose, prose_blocks, split_sentences


class WordTokenizer:
    """A stand-in for WordPiece: one id for each word, given out in order of appearance."""

    cls_token_id = 0
    sep_token_id = 1

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens, "passages bring their own"
        words = [re.findall(r"\w+|[^\w\s]", sentence.lower()) for sentence in text]
        ids = [[self.ids.setdefault(word, len(self.ids) + 2) for word in line] for line in words]
        return {"input_ids": ids}


@pytest.fixture(scope="module")
def texts():
    """The topics and the first modules: parsing the whole library takes seconds."""
    return tuple(islice(documents(), 150))


@pytest.fixture(scope="module")
def corpus(texts):
    return build_corpus(WordTokenizer(), texts=texts)


def test_every_passage_has_exactly_256_tokens(corpus):
    assert len(corpus) > 50
    assert {len(passage.tokens) for passage in corpus} == {PASSAGE_TOKENS}
    assert all(passage.tokens[0] == 0 and passage.tokens[-1] == 1 for passage in corpus)


def test_queries_are_unique_whole_sentences(corpus):
    queries = [passage.query.casefold() for passage in corpus]
    assert len(set(queries)) == len(queries)
    assert all(is_query(passage.query) for passage in corpus)


def test_no_query_stands_in_its_passage(texts, corpus):
    tokenizer = WordTokenizer()
    again = build_corpus(tokenizer, texts=texts)
    assert again == corpus
    for passage in again:
        query = tokenizer([passage.query], add_special_tokens=False)["input_ids"][0]
        assert f" {query} ".strip("[] ") not in str(list(passage.tokens))


def test_passages_do_not_repeat_each_other(corpus):
    assert len({passage.tokens for passage in corpus}) == len(corpus)


def test_the_texts_come_in_the_same_order_each_time(texts):
    assert tuple(islice(documents(), 90)) == texts[:90]
    assert len({text.source for text in texts}) == len(texts)


def test_the_same_texts_give_the_same_digest(texts, corpus):
    assert corpus_digest(corpus) == corpus_digest(build_corpus(WordTokenizer(), texts=texts))
    assert corpus_digest(corpus) != corpus_digest(corpus[1:])


def test_a_limit_spreads_over_all_texts(texts, corpus):
    few = build_corpus(WordTokenizer(), limit=10, texts=texts)
    places = [corpus.index(passage) for passage in few]
    assert places == sorted(set(places))
    assert places[-1] > 0.8 * len(corpus)


def test_batches_are_rectangular(corpus):
    assert [tuple(batch.shape) for batch in passage_batches(corpus[:19])] == [
        (8, PASSAGE_TOKENS),
        (8, PASSAGE_TOKENS),
        (3, PASSAGE_TOKENS),
    ]


def test_transcripts_grammars_and_code_are_not_prose():
    assert is_prose("Return a new list with the items of the old one in reverse.")
    assert not is_prose(">>> f(1)\n2")
    assert not is_prose('list_display ::= "[" [starred_list] "]"')
    assert not is_prose("x = {1: [2, 3], 4: (5, 6)}; y[0] += 1")
    assert prose_blocks("One line of text here.\n\n    >>> 1 + 1\n    2\n\n* Another line.") == [
        "One line of text here.",
        "Another line.",
    ]


def test_abbreviations_do_not_end_a_sentence():
    assert split_sentences("Use a name, e.g. The Name. Then stop.") == [
        "Use a name, e.g. The Name.",
        "Then stop.",
    ]


@pytest.mark.parametrize(
    "sentence",
    ["Too short.", "This leans on the sentence that stood before it.", "no full stop here at all"],
)
def test_what_is_no_query(sentence):
    assert not is_query(sentence)


def test_a_findable_query_shares_its_longer_words():
    assert is_findable("Compile the regular expression.", "a regular expression is to compile")
    assert not is_findable("Compile the regular expression.", "sockets listen on ports")
