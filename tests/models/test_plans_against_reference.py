"""Rewritten graphs give what the reference of their plan gives, on models of many families."""

from __future__ import annotations

import pytest

from tests.models.harness import candidates, falling, family, length, relative
from tokenpass.edits import Edit

MERGE = ("token_merge", "tome")
KEYS = ("token_prune", "key_norm")
ROW = ("token_prune", "attention_row")
EVEN = ("token_prune", "uniform")
RANDOM = ("token_prune", "random")

ENCODERS = (
    "vit",
    "deit",
    "dinov2",
    "clip_vision",
    "siglip",
    "bert",
    "bert_padded",
    "bert_eager_padded",
    "bert_masked_words",
    "bert_classifier",
    "distilbert",
    "pooled",
    "torch_encoder",
)
LAST_TOKEN = ("llama", "qwen2", "mistral", "phi", "gpt2", "gemma2")
# later tokens must not move earlier outputs, so only edits by position apply
BY_POSITION = ("causal_stream", "llama_all_logits", "llama_classifier", "clip_text")
MAY_BE_CAUSAL = (
    "modernbert",
    "t5_encoder",
    "t5",
    "beit_pooled",
)  # masks and biases that vary along queries

CORE = ("vit", "bert_padded", "bert_masked_words", "llama", "pooled")

# one model computes its softmax in float32, whatever the dtype
TOLERANCE = {"gemma2": 1e-5}

DATA_PLANS = {
    "merge_everywhere": (MERGE, MERGE, MERGE),
    "prune_twice": (KEYS, KEYS),
    "merge_then_prune": (MERGE, KEYS),
    "prune_then_merge": (KEYS, MERGE),
    "merge_prune_merge": (MERGE, EVEN, MERGE),
}
POSITION_PLANS = {"even": (EVEN, EVEN), "random": (RANDOM,)}


def check(name: str, edits: list[Edit], seed: int = 3) -> None:
    _, _, graph = family(name)
    assert edits
    planned = graph.planned(edits, seed=seed)
    assert planned.module is not None
    got, expected = graph.run(planned.module), graph.reference(planned)
    assert relative(got, expected) < TOLERANCE.get(name, 1e-9)
    assert relative(got, graph.dense()) > 1e-6  # something happened at all


@pytest.mark.parametrize("name", [*ENCODERS, *LAST_TOKEN])
def test_every_family(name: str) -> None:
    check(name, falling(family(name)[2], DATA_PLANS["merge_prune_merge"]))


@pytest.mark.parametrize("plan", DATA_PLANS)
@pytest.mark.parametrize("name", CORE)
def test_data_plans(name: str, plan: str) -> None:
    check(name, falling(family(name)[2], DATA_PLANS[plan]))


@pytest.mark.slow  # a hundred plans: a minute and more
@pytest.mark.parametrize("plan", DATA_PLANS)
@pytest.mark.parametrize("name", sorted({*ENCODERS, *LAST_TOKEN} - {*CORE}))
def test_data_plans_of_all_families(name: str, plan: str) -> None:
    check(name, falling(family(name)[2], DATA_PLANS[plan]))


@pytest.mark.parametrize("plan", POSITION_PLANS)
@pytest.mark.parametrize("name", [*BY_POSITION, *MAY_BE_CAUSAL, "vit", "bert_padded", "llama"])
def test_plans_by_position(name: str, plan: str) -> None:
    check(name, falling(family(name)[2], POSITION_PLANS[plan]))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    "name", ["deit", "bert_padded", "bert_eager_padded", "llama", "mistral", "gemma2"]
)
def test_the_row_that_the_outputs_read(name: str, merged: bool) -> None:
    check(name, falling(family(name)[2], (MERGE, ROW) if merged else (ROW, ROW)))


@pytest.mark.parametrize("pair", [(MERGE, RANDOM), (RANDOM, KEYS), (EVEN, MERGE), (ROW, MERGE)])
@pytest.mark.parametrize("name", ["vit", "bert_padded", "llama"])
def test_mixed_policies(name: str, pair: tuple[tuple[str, str], ...]) -> None:
    check(name, falling(family(name)[2], pair, keep=0.6))


@pytest.mark.parametrize("name", BY_POSITION)
@pytest.mark.parametrize("choice", [MERGE, KEYS])
def test_causal_streams_refuse_data(name: str, choice: tuple[str, str]) -> None:
    assert not falling(family(name)[2], (choice,))


def test_each_level_of_one_site() -> None:
    _, _, graph = family("bert_padded")
    (first, *_) = candidates(graph, "token_merge")
    tokens = length(first)
    for level in (tokens // 2 + 1, tokens - 1):
        check("bert_padded", [Edit("token_merge", first.site.name, "tome", str(level))])


def test_both_streams_of_an_encoder_decoder() -> None:
    _, _, graph = family("t5")
    sites = {s.name: s for s in graph.view.sites if s.role == "block_output"}
    encoder = next(name for name in sites if name.startswith("encoder"))
    decoder = next(name for name in sites if name.startswith("decoder"))
    check(
        "t5",
        [
            Edit("token_prune", encoder, "uniform", "11"),
            Edit("token_prune", decoder, "random", "5"),
        ],
    )
