"""Attention over groups at full length: what sizes, padding and leaving mean, by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tokenpass.reference.attention import grouped_attention, grouped_softmax, hidden_keys
from tokenpass.reference.groups import untouched

GENERATOR = torch.Generator().manual_seed(0)


def heads(tokens: int) -> torch.Tensor:
    """[1, 2, tokens, 4] in float64."""
    return torch.randn(1, 2, tokens, 4, dtype=torch.float64, generator=GENERATOR)


def test_without_groups_it_is_attention() -> None:
    query, key, value = heads(5), heads(7), heads(7)
    bias = torch.randn(5, 7, dtype=torch.float64, generator=GENERATOR)
    for extra in ({}, {"mask": bias}, {"mask": bias > 0}):
        got = grouped_attention(query, key, value, **extra, asking=None, answering=None)
        expected = F.scaled_dot_product_attention(query, key, value, extra.get("mask"))
        torch.testing.assert_close(got, expected.nan_to_num(0.0))


def test_causal_and_grouped_queries() -> None:
    query, key, value = heads(6), heads(6)[:, :1], heads(6)[:, :1]
    given = {"is_causal": True, "enable_gqa": True}
    got = grouped_attention(query, key, value, **given, asking=None, answering=None)
    torch.testing.assert_close(got, F.scaled_dot_product_attention(query, key, value, **given))


def test_a_group_counts_as_often_as_it_has_members() -> None:
    groups = untouched(1, 3, None)
    groups.seat[0] = groups.stands[0] = torch.tensor([0, 2, 2])
    scores = torch.tensor([[[[0.0, 9.0, math.log(3.0)]]]]).expand(1, 1, 3, 3)
    weights = grouped_softmax(scores, groups, groups)
    # token 2 stands for two tokens of weight 3 beside one of weight 1
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([1 / 7, 3 / 7, 3 / 7]))


def test_padding_and_who_left_answer_nobody() -> None:
    groups = untouched(1, 4, torch.tensor([[False, False, False, True]]))
    groups.present[0, 1], groups.merged = False, True
    weights = grouped_softmax(torch.zeros(1, 1, 4, 4), groups, groups)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([0.5, 0.0, 0.5, 0.0]))
    assert torch.isfinite(weights).all()


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    scores = torch.full((1, 1, 2, 2), -math.inf)
    assert grouped_softmax(scores, None, None).tolist() == [[[[0.0, 0.0], [0.0, 0.0]]]]


def test_keys_that_every_query_misses_are_hidden() -> None:
    seen = torch.tensor([[[[True, False, True], [False, False, True]]]])
    assert hidden_keys(seen, hides=False).tolist() == [[False, True, False]]
    assert hidden_keys(~seen, hides=True).tolist() == [[False, True, False]]
    lowest = torch.finfo(torch.float32).min
    added = torch.tensor([[0.0, lowest, -1.0]])
    assert hidden_keys(added, hides=False).tolist() == [[False, True, False]]
