"""Hand-written modules in which an edit is easily wrong, or must be refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._higher_order_ops import associative_scan, scan
from torch.nn import functional as F

from tests.small_models import Form, Small, codes, compiled, duplicated, look, merged, permuted

FORM = Form(tokens=32)


class Trap(nn.Module):
    """A small model whose `forward` the traps write anew."""

    def __init__(self, form: Form = FORM) -> None:
        super().__init__()
        self.model = Small(form)
        self.cross = nn.MultiheadAttention(form.width, 2, batch_first=True)

    @property
    def blocks(self):
        return self.model.blocks

    def begin(self, x):
        return self.blocks[0](x + self.model.position)

    def end(self, x):
        return self.model.head(self.model.norm(x))


class WrittenView(Trap):
    def forward(self, x):
        x = self.begin(x)
        x.view(x.shape[0], -1, 2, 4).add_(1)
        x[:, 0] = 0
        return self.end(self.blocks[1](x))


class WrittenSide(Trap):
    """A table that is used, doubled in place, and used again."""

    def forward(self, x):
        table = self.model.position * 1.0
        x = self.begin(x) + table
        table.mul_(2)
        return self.end(self.blocks[1](x + table))


class FixedPosition(Trap):
    """One token is silenced by its place."""

    def forward(self, x):
        keep = torch.where(torch.arange(x.shape[1]) == 3, 0.0, 1.0)
        return self.end(self.blocks[1](self.begin(x) * keep[None, :, None]))


class SelectedOnTheWay(Trap):
    def forward(self, x):
        x = self.begin(x)
        early = x[:, 3]
        return self.end(self.blocks[1](x)) + self.model.head(early)[:, None]


class Cross(Trap):
    """Tokens look at another sequence and are looked at by it."""

    def forward(self, x, other):
        x = self.begin(x)
        x = x + self.cross(x, other, other, need_weights=False)[0]
        other = other + self.cross(other, x, x, need_weights=False)[0]
        return self.end(self.blocks[1](x)), other


class MaskedMean(Trap):
    def forward(self, x, mask):
        x = self.end(self.blocks[1](self.begin(x)))
        weight = mask[:, :, None]
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


class MixedSamples(Trap):
    """Each token loses the mean over the batch, and samples change places."""

    def forward(self, x):
        x = self.begin(x)
        x = x - x.mean(0, keepdim=True)
        return self.end(self.blocks[1](x)).flip(0)


class SharedAttention(Trap):
    """Attention weights of one layer are used again on values of the next."""

    def forward(self, x):
        x = x + self.model.position
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        x = x + weights @ x
        x = self.blocks[0](x)
        return self.end(self.blocks[1](x + weights @ x))


class SharpenedAttention(Trap):
    """Probabilities squared and normalised again: not linear in a merged token's sum."""

    def forward(self, x):
        x = self.begin(x)
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        weights = weights**2
        weights = weights / weights.sum(-1, keepdim=True)
        return self.end(self.blocks[1](x + weights @ x))


PERMUTED = {
    WrittenSide: (),
    FixedPosition: (),
    SelectedOnTheWay: (),
    Cross: (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),),
    MaskedMean: (torch.ones(2, 32).tril(20),),
    MixedSamples: (),
    SharedAttention: (),
    SharpenedAttention: (),
}


def build(trap, *args):
    torch.manual_seed(0)
    return trap(*args).eval(), torch.randn(2, FORM.tokens, FORM.width)


@pytest.mark.parametrize("trap", PERMUTED, ids=lambda trap: trap.__name__)
def test_permutation_at_every_site(trap):
    model, x = build(trap)
    with torch.no_grad():
        want = model(x, *PERMUTED[trap])
    want = want if isinstance(want, tuple) else (want,)
    seen = look(model, x, *PERMUTED[trap])
    assert seen.view.sites
    for site in seen.view.sites:
        got, _ = permuted(seen, [site])
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_write_through_a_view_is_refused_where_it_would_be_lost():
    """Sites before the write are refused and name its line; the one behind it is edited."""
    model, x = build(WrittenView)
    got, want, report = compiled(model, x, budget=0.7)
    refused = [r for r in report.rejections if r.code == "mutated_alias"]
    assert {r.where for r in refused} >= {"model.blocks.0:after_attention"}
    assert all("test_traps.py" in r.because for r in refused)
    assert all("blocks.0" not in edit.site for edit in report.plan.edits)
    assert got.shape == want.shape


def test_write_through_a_view_in_every_layer_runs_dense():
    class Everywhere(Trap):
        def forward(self, x):
            x = self.blocks[1](self.begin(x))
            x[:, 0] = 0
            return x

    model, x = build(Everywhere)
    got, want, report = compiled(model, x, budget=0.5)
    assert report.outcome == "dense" and "mutated_alias" in codes(report)
    assert torch.equal(got, want)


class Vmapped(Trap):
    def forward(self, x):
        return torch.vmap(lambda row: row.cumsum(0))(self.begin(x))


class Scanned(Trap):
    """A recurrence over the tokens, step by step."""

    def forward(self, x):
        def step(state, row):
            state = 0.5 * state + row
            return state, state.clone()

        x = self.begin(x)
        return scan(step, torch.zeros_like(x[:, 0]), x, dim=1)[1]


class ScannedInPairs(Trap):
    """The same as a product of pairs."""

    def forward(self, x):
        return associative_scan(torch.add, self.begin(x), dim=1, combine_mode="generic")


class Differentiated(Trap):
    def forward(self, x):
        return torch.func.grad(lambda y: y.square().sum())(self.begin(x))


class Branched(Trap):
    def forward(self, x):
        x = self.begin(x)
        return torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,))


class Checkpointed(Trap):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.blocks[0], x, use_reentrant=False)


class NoAttention(Trap):
    def forward(self, x):
        return self.end(self.blocks[0].mlp(x))


REFUSED = {
    Vmapped: "functorch_region",
    Scanned: "higher_order_operator",
    ScannedInPairs: "functorch_region",  # its pairs are a vmap
    Differentiated: "functorch_region",
    Branched: "higher_order_operator",
    Checkpointed: "higher_order_operator",
    NoAttention: "no_token_stream",
}


@pytest.mark.parametrize("trap", REFUSED, ids=lambda trap: trap.__name__)
def test_graphs_that_are_left_alone(trap):
    """One coded reason; results are bit-equal."""
    model, x = build(trap)
    got, want, report = compiled(model, x, budget=0.5)
    assert report.outcome == "dense" and codes(report) == {REFUSED[trap]}
    assert torch.equal(got, want)


class Shifted(Trap):
    """Every token looks at the one before it."""

    def forward(self, x):
        x = self.begin(x)
        return self.end(self.blocks[1](x + x.roll(1, 1))).mean(1)


class Ranked(Trap):
    """Rows are sorted, and lose their mean before they are put back."""

    def forward(self, x):
        x = self.begin(x)
        rows = x.flatten(0, 1)
        order = rows[:, 0].argsort()
        mixed = rows[order] - rows[order].mean(0)
        x = x + mixed[order.argsort()].view(x.shape)
        return self.end(self.blocks[1](x)).mean(1)


RETURNS = {Shifted: "place_matters", Ranked: "rows_reordered"}


@pytest.mark.parametrize("trap", RETURNS, ids=lambda trap: trap.__name__)
def test_tokens_that_come_back_between_layers_are_told(trap):
    model, x = build(trap)
    got, want, report = compiled(model, x, budget=0.6, objective="flops")
    assert report.outcome == "edited" and RETURNS[trap] in codes(report)
    assert got.shape == want.shape


class RunningSum(Trap):
    def forward(self, x):
        x = self.blocks[1](self.begin(x))
        return self.end(x.cumsum(1))[:, -1]


class SoftmaxOfTokens(Trap):
    def forward(self, x):
        x = self.blocks[1](self.begin(x))
        return self.end(x.softmax(1))[:, 0]


class TransposedScores(Trap):
    """Rows of the scores become columns: reading one of them takes every query."""

    def forward(self, x):
        x = self.blocks[1](self.begin(x))
        scores = (x @ x.transpose(1, 2)).transpose(1, 2)
        return (scores @ self.end(x))[:, 0]


@pytest.mark.parametrize("trap", [RunningSum, SoftmaxOfTokens, TransposedScores])
def test_what_mixes_tokens_before_the_read_sees_all_of_them(trap):
    """Only one token of the mixer's output is read, but every token of its input."""
    model, x = build(trap)
    got, want, report = compiled(model, x)
    assert [edit.pass_name for edit in report.plan.edits] == ["dead_tokens"]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class LastReal(Trap):
    """The last token that is not padding, of every sample."""

    def forward(self, x, ids):
        x = self.blocks[1](self.begin(x))
        return self.end(x)[torch.arange(x.shape[0]), ids.argmax(-1)]


class LastRealOfOthers(Trap):
    def forward(self, x, ids):
        x = self.blocks[1](self.begin(x))
        return self.end(x).flip(0)[torch.arange(x.shape[0]), ids.argmax(-1)]


class LastRealPerHead(Trap):
    def forward(self, x, ids):
        x = self.blocks[1](self.begin(x))
        heads = x.view(x.shape[0], x.shape[1], 2, -1).transpose(1, 2)
        return heads[:, torch.arange(2), ids.argmax(-1)]


READS = {LastReal: "edited", LastRealOfOthers: "dense", LastRealPerHead: "dense"}


@pytest.mark.parametrize("trap", READS, ids=lambda trap: trap.__name__)
def test_positions_that_the_graph_computes(trap):
    """Dead tokens go only where each sample reads a position of its own."""
    model, x = build(trap)
    ids = torch.zeros(2, FORM.tokens)
    ids[0, 5] = ids[1, 9] = 1
    got, want, report = compiled(model, x, ids)
    assert report.outcome == READS[trap]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class ColumnOfScores(Trap):
    """What all queries pay to one key: every query lives, though one position is read."""

    def forward(self, x):
        x = self.blocks[1](self.begin(x))
        scores = x @ x.transpose(1, 2)
        return F.gelu(scores.transpose(1, 2))[:, 0]


def test_column_of_scores_keeps_all_queries():
    model, x = build(ColumnOfScores)
    got, want, _ = compiled(model, x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class Surprise(Trap):
    """The entropy of attention beside the output, and probabilities with a floor."""

    def forward(self, x):
        x = self.begin(x)
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        entropy = -(weights * weights.log()).sum(-1)
        return self.end(x + weights.clamp(min=0.01) @ x), entropy


@pytest.mark.parametrize("trap", [SharedAttention, SharpenedAttention, Surprise])
def test_probabilities_of_merged_duplicates(trap):
    """A merged token's probability is a sum: what is not linear sees its members."""
    model, x = build(trap)
    model.model.position.data.zero_()
    x, rep = duplicated(x, 9)
    with torch.no_grad():
        want = model(x)
    want = want if isinstance(want, tuple) else (want,)
    seen = look(model, x)
    for site in seen.view.sites:
        got, _ = merged(seen, site, rep)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class WrittenIndex(Trap):
    """The position is decided by a write behind the layers that would be shortened."""

    def forward(self, x, ids):
        ids = ids * 1.0
        x = self.blocks[1](self.begin(x))
        ids[:, 3] = 100
        return self.end(x)[torch.arange(x.shape[0]), ids.argmax(-1)]


def test_position_behind_a_write_is_not_computed_ahead():
    model, x = build(WrittenIndex)
    ids = torch.zeros(2, FORM.tokens)
    ids[0, 5] = ids[1, 9] = 1
    got, want, report = compiled(model, x, ids)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert report.outcome == "dense"
