"""The traps of a rewriter, on small models: what must be edited right, and what must be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.small_models import Form, compiled, duplicated, look, make, merged, permuted

FORMS = {
    "separate": Form(),
    "chunk": Form(qkv="chunk"),
    "split": Form(qkv="split"),
    "unbind": Form(qkv="unbind"),
    "five dimensions": Form(qkv="five"),
    "flattened rows": Form(qkv="flat"),
    "written": Form(attention="written"),
    "bmm over batch x heads": Form(attention="bmm"),
    "causal": Form(attention="causal"),
    "written, relative bias": Form(attention="written", bias="relative"),
    "relative bias": Form(bias="relative"),
    "rotary": Form(bias="rotary"),
    "triangle of ones": Form(bias="triangle"),
    "written, triangle of ones": Form(bias="triangle", attention="written"),
    "mask written in place": Form(bias="written"),
    "grouped queries": Form(kv_heads=1, attention="gqa"),
    "repeated keys": Form(kv_heads=1, heads=4),
    "post-norm": Form(block="post"),
    "parallel": Form(block="parallel"),
    "tokens first": Form(layout="nbc"),
    "one sample": Form(batch=1),
    "one head": Form(heads=1),
    "tokens = width": Form(tokens=8),
    "tokens = head_dim": Form(tokens=4),
    "tokens = heads": Form(tokens=4, heads=4, width=16),
    "tokens = batch": Form(tokens=6, batch=6),
    "all equal": Form(tokens=4, batch=4, heads=4, width=16),
}
BARRIERS = {
    "convolution between": Form(between="conv"),
    "class token": Form(head="cls"),
    "last token": Form(head="last"),
    "mean": Form(head="mean"),
}


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*FORMS, *BARRIERS])
def test_permutation_at_every_site(name):
    """Each sample's tokens in an order of its own, behind one site and behind all: dense."""
    model, x = make((FORMS | BARRIERS)[name])
    seen = look(model, x)
    with torch.no_grad():
        want = model(x)
    assert len(seen.view.sites) == 3
    for sites in [*([site] for site in seen.view.sites), seen.view.sites]:
        (got,), replay = permuted(seen, sites)
        close(got, want)
        assert bool(replay.restored) == (name in BARRIERS)


@pytest.mark.parametrize("name", ["five dimensions", "tokens first", "bmm over batch x heads"])
def test_lossy_plan_keeps_shapes(name):
    model, x = make(replace(FORMS[name], tokens=32))
    got, want, report = compiled(model, x, budget=0.7)
    assert report.outcome == "edited"
    assert got.shape == want.shape and torch.isfinite(got).all()
    assert 0 < float((got - want).norm() / want.norm()) < 1.5


DEAD = [("separate", "cls"), ("chunk", "last"), ("causal", "last"), ("written", "cls"),
        ("triangle of ones", "last"), ("tokens first", "cls"), ("rotary", "last")]  # fmt: skip


@pytest.mark.parametrize(("name", "head"), DEAD)
def test_dead_tokens_are_exact(name, head):
    model, x = make(replace(FORMS[name], head=head))
    got, want, report = compiled(model, x)
    assert [edit.pass_name for edit in report.plan.edits] == ["dead_tokens"]
    close(got, want)


DUPLICATES = ("separate", "chunk", "five dimensions", "written", "bmm over batch x heads",
              "grouped queries", "repeated keys", "post-norm", "tokens first", "mean")  # fmt: skip


@pytest.mark.parametrize("name", DUPLICATES)
def test_merged_duplicates_at_every_site(name):
    """Sizes in attention and means: exact duplicates merged give what all tokens give."""
    model, x = make((FORMS | BARRIERS)[name])
    model.position.data.zero_()
    x, rep = duplicated(x, 4)
    seen = look(model, x)
    with torch.no_grad():
        want = model(x)
    for site in seen.view.sites:
        (got,), replay = merged(seen, site, rep)
        close(got, want)
        assert not replay.restored
