"""What the property tests of all rules leave out of attention: causality, and what runs."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from tokenpass.rewrite.replay import Action, Replay

from .rule_harness import build, check, check_constants, make_view, reductions
from .rule_language import T, ex
from .rule_trial import draw_trial

SDPA = torch.ops.aten.scaled_dot_product_attention.default
SHAPES = ("b h n d", "(b h) n d", "b n d", "n d", "b h g n d")


@pytest.mark.parametrize("dims", SHAPES)
def test_causal_attention_under_permutation(dims):
    """`is_causal` becomes a comparison of positions, of whatever rank the operands are."""
    example = ex(*[T(dims)] * 3, is_causal=True, tokens="mixed")
    for seed in range(12):
        check(draw_trial(example, SDPA, random.Random(seed), "permutation"))


def test_causal_grouped_queries_under_permutation():
    parts = [T("b 4 n d"), T("b 2 n d"), T("b 2 n d")]
    example = ex(*parts, is_causal=True, enable_gqa=True, tokens="mixed")
    for seed in range(12):
        check(draw_trial(example, SDPA, random.Random(seed), "permutation"))


def test_equal_queries_of_several_groups_give_unequal_heads():
    """Queries that do not differ between heads meet keys that do."""
    parts = [T("b 4 n d"), T("b 2 n d"), T("b 2 n d")]
    example = ex(*parts, enable_gqa=True, tokens="mixed")
    for seed in range(12):
        check_constants(example, SDPA, random.Random(seed))


@pytest.mark.parametrize("mask", ["n n", "b 1 n n"])
def test_mask_follows_a_permutation(mask):
    example = ex(*[T("b h n d")] * 3, T(mask, "keep"), tokens="mixed")
    for seed in range(12):
        check(draw_trial(example, SDPA, random.Random(seed), "permutation"))


def replayed(trial):
    """The call's output where tokens were pruned, as it is, and the inputs."""
    built = build(trial)
    view, nodes, axis, batch = make_view(built, trial)
    chain = reductions(trial, axis, batch)
    acts = {node: [Action(0, lambda r, n, v, step=step: step) for step in chain] for node in nodes}
    replay = Replay(view, acts, (), frozenset(built.outs))
    replay.stream_nodes |= frozenset(nodes)
    return replay.run(*built.inputs)[0], built.inputs


def test_causal_attention_of_tokens_left():
    """Kept tokens attend to kept tokens that are not after them, in any order."""
    example = ex(*[T("b h n d")] * 3, is_causal=True, tokens="mixed")
    for seed in range(20):
        trial = draw_trial(example, SDPA, random.Random(seed), "prune")
        if trial.sides:
            continue
        got, inputs = replayed(trial)
        index = trial.full_index().expand(inputs[0].shape[0], -1)
        short = [x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
                 for x in inputs]  # fmt: skip
        mask = (index[:, :, None] >= index[:, None, :])[:, None]
        want = F.scaled_dot_product_attention(*short, attn_mask=mask)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_duplicates_with_log_sizes_equal_full_attention():
    """Merged exact duplicates: the design's own check, in double precision."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in range(3))
    rep = torch.tensor([0, 1, 1, 2, 2, 2])
    short = torch.tensor([0, 1, 3])
    k, v = k[:, :, short][:, :, rep], v[:, :, short][:, :, rep]
    sizes = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    full = F.scaled_dot_product_attention(q, k, v)
    merged = F.scaled_dot_product_attention(q, k[:, :, short], v[:, :, short], sizes.log()[None])
    torch.testing.assert_close(merged, full)
