"""What became of the tokens, on groups small enough to write down."""

from __future__ import annotations

import torch

from tokenpass.reference.groups import rows, untouched


def test_untouched_tokens_stand_for_themselves() -> None:
    groups = untouched(2, 3, None)
    assert groups.seats().tolist() == [[0, 1, 2], [0, 1, 2]]
    assert groups.sizes().tolist() == [[1, 1, 1], [1, 1, 1]]
    assert groups.counted.all()


def test_members_of_a_group_share_its_seat_and_padding_counts_nothing() -> None:
    groups = untouched(1, 4, torch.tensor([[False, False, False, True]]))
    groups.seat[0], groups.merged = torch.tensor([0, 2, 2, 2]), True
    assert groups.seats().tolist() == [[0, 2]]
    assert groups.members(0, 2).tolist() == [1, 2, 3]
    assert groups.sizes().tolist() == [[1, 2]]
    assert groups.counted.tolist() == [[True, True, True, False]]


def test_who_left_has_no_seat() -> None:
    groups = untouched(1, 3, None)
    groups.present[0, 1] = False
    assert groups.seats().tolist() == [[0, 2]]
    assert groups.counted.tolist() == [[True, False, True]]


def test_rows_are_taken_sample_by_sample() -> None:
    value = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    index = torch.tensor([[1, 1], [0, 1]])
    assert rows(value, index).tolist() == [[[2.0], [2.0]], [[3.0], [4.0]]]


def test_rows_of_a_shared_value_grow_a_batch() -> None:
    shared = torch.tensor([[1.0, 2.0, 3.0]])
    assert rows(shared, torch.tensor([[2, 0], [1, 1]]), -1).tolist() == [[3.0, 1.0], [2.0, 2.0]]


def test_heads_folded_into_the_batch_follow_their_sample() -> None:
    value = torch.arange(8.0).view(4, 2, 1)  # 2 samples x 2 heads
    taken = rows(value, torch.tensor([[0], [1]]))
    assert taken.flatten().tolist() == [0.0, 2.0, 5.0, 7.0]
