"""MLPs are found however they are written, with the operators that would be replaced."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.models.harness import family
from tokenpass.capture.normal_form import NORMAL_FORM
from tokenpass.graph.causality import Examples
from tokenpass.graph.labels import Labels
from tokenpass.graph.mlp import mlp_regions
from tokenpass.graph.regions import attention_regions

WIDTH, INNER = 6, 10
X = torch.randn(2, 5, WIDTH)
UP, GATE, BIAS = torch.randn(INNER, WIDTH), torch.randn(INNER, WIDTH), torch.randn(INNER)
BOTH, DOWN, OUT = torch.randn(2 * INNER, WIDTH), torch.randn(WIDTH, INNER), torch.randn(WIDTH)


def plain(act):
    def mlp(x, up, gate, both, down):
        return F.linear(act(F.linear(x, up, BIAS.sum() * up[:, 0])), down)

    mlp.__name__ = f"plain {act.__name__}"
    return mlp


def gated(act, swapped=False):
    def mlp(x, up, gate, both, down):
        left, right = act(F.linear(x, gate)), F.linear(x, up)
        return F.linear(right * left if swapped else left * right, down)

    mlp.__name__ = f"gated {act.__name__}{' swapped' if swapped else ''}"
    return mlp


def gelu_tanh_written(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_written(x):
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def silu_written(x):
    return x * torch.sigmoid(x)


def silu_by_exponential(x):
    return x / (1 + torch.exp(-x))


def relu_squared(x):
    return F.relu(x).square()


def relu_by_clamp(x):
    return x.clamp(min=0)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def in_float32(x):
    return F.silu(x.float()).to(x.dtype)


def with_dropout(x):
    return F.dropout(F.gelu(x), 0.1, False)


def scaled(x):
    return F.gelu(x) * 1.7


def chunked(x, up, gate, both, down):
    left, right = F.linear(x, both).chunk(2, -1)
    return F.linear(F.silu(left) * right, down)


def up_first(x, up, gate, both, down):
    right, left = F.linear(x, both).split(INNER, -1)
    return F.linear(right * F.gelu(left), down)


def interleaved(x, up, gate, both, down):
    """Every other channel, with limits: an activation without a name."""
    mixed = F.linear(x, both)
    left, right = mixed[..., ::2].clamp(max=7.0), mixed[..., 1::2].clamp(-7.0, 7.0)
    return F.linear((right + 1) * (left * torch.sigmoid(1.702 * left)), down)


def stacked(x, up, gate, both, down):
    left, right = F.linear(x, both).unflatten(-1, (2, INNER)).unbind(-2)
    return F.linear(F.silu(left) * right, down)


def flat_rows(x, up, gate, both, down):
    """GPT-2's: a matrix of rows, weights the other way round."""
    rows = torch.addmm(OUT.sum() * up[:, 0], x.view(-1, WIDTH), up.t())
    return torch.addmm(down[:, 0], F.gelu(rows.view(2, 5, INNER)).view(-1, INNER), down.t()).view(
        2, 5, WIDTH
    )


def by_matmul(x, up, gate, both, down):
    return torch.relu(x @ up.T) @ down.T


def by_convolution(x, up, gate, both, down):
    mixed = F.gelu(F.conv1d(x.transpose(1, 2), up[..., None]))
    return F.conv1d(mixed, down[..., None]).transpose(1, 2)


FOUND = {
    plain(F.gelu): ("plain", "gelu"),
    plain(F.relu): ("plain", "relu"),
    plain(gelu_tanh_written): ("plain", "gelu_tanh"),
    plain(gelu_written): ("plain", "gelu"),
    plain(relu_squared): ("plain", "relu_squared"),
    plain(relu_by_clamp): ("plain", "relu"),
    plain(quick_gelu): ("plain", "quick_gelu"),
    plain(with_dropout): ("plain", "gelu"),
    plain(scaled): ("plain", ""),
    gated(F.silu): ("gated", "silu"),
    gated(F.silu, swapped=True): ("gated", "silu"),
    gated(silu_written): ("gated", "silu"),
    gated(silu_by_exponential): ("gated", "silu"),
    gated(in_float32): ("gated", "silu"),
    gated(torch.sigmoid): ("gated", "sigmoid"),
    gated(torch.clone): ("gated", "identity"),
    chunked: ("fused", "silu"),
    up_first: ("fused", "gelu"),
    interleaved: ("fused", ""),
    stacked: ("fused", "silu"),
    flat_rows: ("plain", "gelu"),
    by_matmul: ("plain", "relu"),
    by_convolution: ("plain", "gelu"),
}


def low_rank(x, up, gate, both, down):
    return F.linear(F.linear(x, up), down)


def normed_between(x, up, gate, both, down):
    return F.linear(F.layer_norm(F.gelu(F.linear(x, up)), [INNER]), down)


def of_two_inputs(x, up, gate, both, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x.flip(1), up), down)


def seen_elsewhere(x, up, gate, both, down):
    hidden = F.gelu(F.linear(x, up))
    return F.linear(hidden, down) + hidden.mean()


def gated_attention(x, up, gate, both, down):
    mixed = F.scaled_dot_product_attention(*(F.linear(x, w) for w in (up, gate, gate)))
    return F.linear(mixed * torch.sigmoid(F.linear(x, gate)), down)


def of_one_token(x, up, gate, both, down):
    return x + F.linear(F.gelu(F.linear(x[:, 0], up)), down)[:, None]


OTHERS = (low_rank, normed_between, of_two_inputs, seen_elsewhere, gated_attention, of_one_token)


def found(trace, mlp):
    """The regions of a function between an attention and an output."""

    def model(x, *weights):
        return mlp(F.scaled_dot_product_attention(x, x, x), *weights) * 2

    module = trace(model, X, UP, GATE, BOTH, DOWN, simpler=NORMAL_FORM)
    labels = Labels(module.graph)
    regions = attention_regions(module.graph, labels, Examples())
    return mlp_regions(module.graph, labels, regions), module


@pytest.mark.parametrize("mlp", FOUND, ids=lambda f: f.__name__)
def test_an_mlp_is_found(trace, mlp):
    (region,), module = found(trace, mlp)
    weights = [node for node in module.graph.nodes if node.op == "placeholder"][1:]
    assert (region.kind, region.activation) == FOUND[mlp]
    assert region.layer == 0 and region.axis.size == INNER
    assert region.down.weight is weights[3] and region.output is region.down.value
    assert (region.product is not None) == (region.kind != "plain")
    read = {region.up.weight} | ({region.gate.weight} if region.gate else set())
    expected = {"plain": {weights[0]}, "gated": {*weights[:2]}, "fused": {weights[2]}}
    assert read == expected[region.kind]


def test_the_gate_is_what_is_acted_on(trace):
    for mlp in (gated(F.silu), gated(F.silu, swapped=True)):
        (region,), module = found(trace, mlp)
        weights = [node for node in module.graph.nodes if node.op == "placeholder"][1:]
        assert region.gate is not None
        assert (region.up.weight, region.gate.weight) == (weights[0], weights[1])
        (act,) = region.acting
        assert act.target is torch.ops.aten.silu.default
        assert act.args[0] is region.gate_value and act in region.product.all_input_nodes


@pytest.mark.parametrize("mlp", OTHERS, ids=lambda f: f.__name__)
def test_other_projections_are_no_mlp(trace, mlp):
    assert found(trace, mlp)[0] == []


FAMILIES = {
    "vit": ("plain", "gelu"),
    "bert_eager_padded": ("plain", "gelu"),
    "llama": ("gated", "silu"),
    "gpt2": ("plain", "gelu_tanh"),
    "bloom": ("plain", "gelu_tanh"),
    "modernbert": ("fused", "gelu"),
    "torch_encoder": ("plain", "silu"),
}
MORE_FAMILIES = {
    "deit": ("plain", "gelu"),
    "siglip": ("plain", "gelu_tanh"),
    "clip_text": ("plain", "quick_gelu"),
    "distilbert": ("plain", "gelu"),
    "albert": ("plain", "gelu_tanh"),
    "gemma2": ("gated", "gelu_tanh"),
    "phi": ("plain", "gelu_tanh"),
    "phi3": ("fused", "silu"),
    "glm": ("fused", "silu"),
    "opt": ("plain", "relu"),
    "falcon": ("plain", "gelu"),
    "gpt_neox": ("plain", "gelu"),
    "gptj": ("plain", "gelu_tanh"),
    "codegen": ("plain", "gelu_tanh"),
    "starcoder2": ("plain", "gelu_tanh"),
    "mpt": ("plain", "gelu"),
    "t5_encoder": ("plain", "relu"),
    "whisper_encoder": ("plain", "gelu"),
    "wav2vec2": ("plain", "gelu"),
    "written_parallel": ("gated", "silu"),
}


def check_family(name, kind):
    _, _, graph = family(name)
    regions = graph.view.mlps
    assert [region.layer for region in regions] == [r.layer for r in graph.view.regions]
    assert {(region.kind, region.activation) for region in regions} == {kind}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_a_family_has_one(name):
    check_family(name, FAMILIES[name])


@pytest.mark.zoo
@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_every_layer_of_other_families_has_one(name):
    check_family(name, MORE_FAMILIES[name])
