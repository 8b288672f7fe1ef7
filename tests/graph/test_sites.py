"""Streams and sites of small models: named by module, role and place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.small_models import Form, look, make

PLAIN = [
    "blocks.0:after_attention",
    "blocks.0:block_output",
    "blocks.1:after_attention",
]
FORMS = {
    "pre-norm": (Form(), PLAIN),
    "post-norm": (Form(block="post"), [PLAIN[0], "blocks.0.second:block_output", PLAIN[2]]),
    "parallel": (Form(block="parallel"), PLAIN),
    "chunk": (Form(qkv="chunk"), PLAIN),
    "unbind": (Form(qkv="unbind"), PLAIN),
    "flattened rows": (Form(qkv="flat"), PLAIN),
    "written": (Form(attention="written"), PLAIN),
}


@pytest.mark.parametrize("name", FORMS)
def test_sites(name):
    form, names = FORMS[name]
    model, x = make(form)
    seen = look(model, x)
    assert [site.name for site in seen.view.sites] == names
    assert [site.layer for site in seen.view.sites] == [0, 0, 1]
    assert {(site.token_dim, site.batch_dim) for site in seen.view.sites} == {(1, 0)}


def test_roles_of_a_parallel_block():
    """The sum of attention and MLP is one value: both roles lie behind the attention."""
    model, x = make(Form(block="parallel"))
    sites = look(model, x).view.sites
    assert [site.role for site in sites] == ["after_attention", "block_output", "after_attention"]


def test_tokens_first():
    model, x = make(Form(layout="nbc"))
    (stream,) = look(model, x).view.streams
    assert stream.axis.size == 6 and stream.batch is not None and stream.batch.size == 2


def test_a_single_sample_has_no_batch_axis():
    model, x = make(Form(batch=1))
    (stream,) = look(model, x).view.streams
    assert stream.batch is None
    assert {site.batch_dim for site in stream.sites} == {None}


def test_stream_begins_where_tokens_do():
    """Not behind the first projection: the residual stream belongs to it."""
    for qkv in ("separate", "chunk", "split", "unbind", "five"):
        model, x = make(Form(qkv=qkv))
        (stream,) = look(model, x).view.streams
        assert stream.birth.op == "placeholder"


def test_same_module_twice():
    """A shared block's sites differ by their ordinal."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make(Form())[0]

        def forward(self, x):
            block = self.model.blocks[0]
            return block(block(block(x)))

    names = [site.name for site in look(Twice(), torch.randn(2, 6, 8)).view.sites]
    assert len(set(names)) == len(names) == 5
    assert any("#1" in name for name in names)


def test_no_stream_without_attention():
    view = look(nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.randn(2, 5, 4)).view
    assert [r.code for r in view.rejections] == ["no_token_stream"] and not view.streams


def test_protected_positions():
    for head, places in (("cls", {0}), ("last", {5}), ("mean", set()), ("full", set())):
        model, x = make(Form(head=head))
        (stream,) = look(model, x).view.streams
        assert {p.at for p in stream.protected.positions} == places
