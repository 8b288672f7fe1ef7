"""Mixtures of experts in many spellings: some of the rows give what they give among all of them."""

from __future__ import annotations

import pytest
import torch

from tokenpass.graph.labels import Labels

from .row_harness import check_apart, check_refused, graph_of, picked, shortened
from .row_spellings import (
    BATCH,
    SOUND,
    TOKENS,
    UNSOUND,
    X,
    added_back,
    library_batched,
    library_grouped,
)


@pytest.mark.parametrize("function", SOUND, ids=lambda f: f.__name__)
@pytest.mark.parametrize("same", [True, False], ids=["same tokens", "tokens of each sample"])
def test_some_rows_give_what_they_give_among_all(trace, function, same):
    module, want = graph_of(trace, function), function(X)
    noise = torch.rand(1 if same else BATCH, TOKENS, generator=torch.Generator().manual_seed(3))
    for count in (TOKENS, 4, 1):
        check_apart(module, want, noise.argsort(1)[:, :count])


def test_experts_looked_up_need_no_set(trace):
    module = graph_of(trace, library_batched)
    labels, index = Labels(module.graph), torch.tensor([[7, 2, 3], [0, 8, 1], [4, 6, 5]])
    assert labels.row_sets == []
    _, got = shortened(module, labels, index)
    torch.testing.assert_close(got, picked(library_batched(X), index), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", UNSOUND, ids=lambda f: f.__name__)
def test_what_is_not_shown_runs_on_all_rows(trace, function):
    check_refused(graph_of(trace, function), function)


def test_dynamic_length(trace):
    labels = Labels(graph_of(trace, library_grouped, dynamic=[(0, 1)]).graph)
    (rows,) = labels.row_sets
    assert rows.refused is None, rows.refused


def test_two_sets_in_a_row(trace):
    module = graph_of(trace, lambda x: added_back(x + library_grouped(x)))
    labels = Labels(module.graph)
    assert [rows.refused for rows in labels.row_sets] == [None, None]
    assert len(labels.row_sets[0].exits) == len(labels.row_sets[1].exits) == 1
    assert not {*labels.row_sets[0].calls} & {*labels.row_sets[1].calls}
