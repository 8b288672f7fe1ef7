"""Merging, one sample and one token at a time."""

from __future__ import annotations

import math

import torch


def assign(score, partner, sizes, count, by_position):
    """Segment, kept, moved, shares and merged sizes of one sample, as lists.

    Padding goes first, to padding; last, where no target is padding.
    """
    tokens = len(sizes)
    empty = [j for j in range(tokens // 2) if sizes[2 * j + 1] == 0]
    padding = [i for i in range(len(score)) if sizes[2 * i] == 0]
    partner = [empty[0] if i in padding and empty else j for i, j in enumerate(partner)]
    rank = [-s for s in score]
    for i in padding:
        rank[i] = -math.inf if empty else math.inf
    ranked = sorted(range(len(score)), key=lambda i: (rank[i], i))
    joins = {2 * i: 2 * partner[i] + 1 for i in ranked[: tokens - count]}
    groups = {token: [token] for token in range(tokens) if token not in joins}
    for token, goal in joins.items():
        groups[goal].append(token)

    def stands_at(kept):
        real = [token for token in groups[kept] if sizes[token] > 0]
        return max(real) if real else kept

    kept = sorted(groups, key=stands_at) if by_position else sorted(groups)
    segment, shares, merged = [0] * tokens, [0.0] * tokens, []
    for place, token in enumerate(kept):
        total = sum(sizes[member] for member in groups[token])
        merged.append(total)
        for member in groups[token]:
            segment[member] = place
            shares[member] = sizes[member] / total if total else float(member == token)
    return segment, kept, sorted(joins), shares, merged


def assert_correct(arguments, results):
    score, partner, sizes, protected, count, by_position = arguments
    for sample in range(len(sizes)):
        wanted = assign(
            score[sample].tolist(),
            partner[sample].tolist(),
            sizes[sample].tolist(),
            count,
            by_position,
        )
        segment, kept, moved, shares, merged, logs, places = (r[sample] for r in results)
        assert (segment.tolist(), kept.tolist()) == wanted[:2]
        assert sorted(moved.tolist()) == wanted[2]
        torch.testing.assert_close(shares, torch.tensor(wanted[3], dtype=shares.dtype))
        torch.testing.assert_close(merged, torch.tensor(wanted[4], dtype=merged.dtype))
        torch.testing.assert_close(logs, merged.log())
        named = [] if protected is None else protected[sample % len(protected)].tolist()
        assert places.tolist() == [wanted[0][token] for token in named]


def exact_cases():
    """Arguments with the only right results; no logarithm but that of 1."""
    score, partner = torch.tensor([[1.0, 3.0]]), torch.tensor([[0, 0]])
    sizes = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    yield (
        (score, partner, sizes, torch.tensor([[3, 2]]), 3, False),
        (
            [[0, 1, 1, 2]],
            [[0, 1, 3]],
            [[2]],
            [[1.0, 0.0, 1.0, 1.0]],
            [[1.0, 1.0, 1.0]],
            [[0.0, 0.0, 0.0]],
            [[2, 1]],
        ),
    )
    yield (  # padding goes first, to padding, whatever its partner; the token that stays counts
        (score, partner, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), None, 3, True),
        (
            [[2, 0, 1, 2]],
            [[1, 2, 3]],
            [[0]],
            [[0.0, 1.0, 1.0, 1.0]],
            [[1.0, 1.0, 0.0]],
            [[0.0, 0.0, -math.inf]],
            [[]],
        ),
    )
    yield (  # where no target is padding, real tokens merge before it
        (torch.tensor([[3.0, 1.0]]), partner, torch.tensor([[0.0, 0.5, 0.5, 1.0]]), None, 3, False),
        (
            [[0, 1, 1, 2]],
            [[0, 1, 3]],
            [[2]],
            [[1.0, 0.5, 0.5, 1.0]],
            [[0.0, 1.0, 1.0]],
            [[-math.inf, 0.0, 0.0]],
            [[]],
        ),
    )
