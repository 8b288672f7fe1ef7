"""Recall, cosine and the paired interval on embeddings made by hand."""

import pytest
import torch

from benchmarks.quality import compare, ranks


def test_recall_of_hand_made_embeddings():
    queries = torch.eye(4)
    swapped = queries[[1, 0, 2, 3]]
    assert ranks(queries, queries).tolist() == [0, 0, 0, 0]
    quality = compare(queries, queries, swapped)
    assert quality.recall_at_1 == 0.5
    assert quality.recall_at_5 == 1.0
    assert quality.difference == -0.5
    assert quality.cosine == 0.5
    assert quality.passages == 4


def test_ties_count_against_the_passage():
    same = torch.ones(3, 2) / 2**0.5
    assert ranks(same, same).tolist() == [2, 2, 2]


def test_equal_embeddings_have_no_difference():
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(64, 8, generator=generator), dim=-1)
    quality = compare(rows, rows, rows)
    assert (quality.difference, quality.low, quality.high) == (0.0, 0.0, 0.0)
    assert quality.cosine == pytest.approx(1.0)


def test_the_interval_holds_the_difference_and_is_seeded():
    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(128, 8, generator=generator), dim=-1)
    noisy = torch.nn.functional.normalize(
        rows + 0.4 * torch.randn(rows.shape, generator=generator), dim=-1
    )
    quality = compare(rows, rows, noisy)
    assert quality.low <= quality.difference <= quality.high < 0.0
    assert quality == compare(rows, rows, noisy)
