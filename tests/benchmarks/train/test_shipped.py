"""The shipped decoders: what they are, and that they reach what their cards say."""

import math
from dataclasses import replace

import pytest
import torch

import tokenpass
from benchmarks.perplexity import compare, window_bits
from benchmarks.train.loop import train
from benchmarks.train.recipe import CLASSES, RECIPES, VARIANTS
from benchmarks.train.shipped import FOLDER, SLICE, card, load, predictor, ship, zero_shares
from benchmarks.train.text import library_text, windows
from tests.benchmarks.train.test_loop import STAGES, TEXT, TINY
from tokenpass.report import last_reports

LARGEST = 4.2e6
OTHER_PYTHON = 0.1
"""The library of another Python holds out other bytes of the same modules."""


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def model(variant):
    return load(variant)


def test_the_files_are_small_and_their_cards_say_the_recipe(variant):
    assert (FOLDER / f"{variant}.safetensors").stat().st_size < LARGEST
    found = card(variant)
    assert found["recipe"] == RECIPES[variant].as_data()
    assert "PSF License" in found["licence"]


def test_the_model_is_transformers_own(variant, model):
    assert type(model) is CLASSES[variant][0]
    assert not model.training and {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert sum(value.numel() for value in model.parameters()) == card(variant)["parameters"]


def test_the_weights_reach_what_the_card_says(variant, model):
    text, found = library_text(), card(variant)
    rows = windows(text.held_out, model.config.max_position_embeddings, limit=SLICE)
    measured = float(window_bits(predictor(model), rows).mean())
    stated = found["held_out_bits_per_byte"]
    same = text.digest == found["text"]["digest"]
    tolerance = 1e-3 if same else OTHER_PYTHON
    assert measured == pytest.approx(stated[f"as_stored_{SLICE}_windows"], abs=tolerance)
    assert stated["as_stored"] < 1.95
    assert abs(stated["as_stored"] - stated["before_rounding"]) < 1e-3


def test_far_bytes_matter(model):
    """Else nothing that forgets tokens could be judged by it."""
    rows = windows(library_text().held_out, 512, limit=8)
    near = window_bits(predictor(model), rows[:, -129:], read=64)
    far = window_bits(predictor(model), rows, read=64)
    assert float(far.mean()) < float(near.mean()) - 0.02


def test_damage_shows_with_its_interval(variant, model):
    """A tenth of the weights' spread as noise, then attention to the last 16 bytes alone."""
    rows = windows(library_text().held_out, 512, limit=8)
    damaged = load(variant)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in damaged.parameters():
            value += 0.1 * value.std() * torch.randn(value.shape, generator=generator)
    noisy = compare(predictor(model), predictor(damaged), rows)
    assert noisy.low > 0.0 and noisy.difference < 0.5

    place = torch.arange(512)
    near = (place[:, None] - place).abs() < 16
    mask = (near & (place[:, None] >= place))[None, None]

    def forgetful(ids):
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    assert compare(predictor(model), forgetful, rows).low > 0.02


def test_a_lossy_plan_is_judged_by_the_last_byte(model):
    """A prefill that was shortened answers for its last position alone."""
    rows = windows(library_text().held_out, 256, limit=6)
    options = {"budget": 0.7, "lowering": "eager", "objective": "flops", "on_failure": "raise"}
    tokenpass.reset()
    compiled = torch.compile(model, backend="tokenpass", options=options)

    def predict(ids):
        return compiled(input_ids=ids, use_cache=False, logits_to_keep=1).logits

    found = compare(predictor(model), predict, rows, read=1, batch=6)
    (report,) = last_reports()
    assert {edit.pass_name for edit in report.plan.edits} - {"dead_tokens"}
    assert found.variant != found.dense and found.variant < 8.0
    with pytest.raises(ValueError, match="1 positions came back, 256 are to be read"):
        compare(predictor(model), predict, rows, batch=6)


def test_zeros_are_those_of_the_card(variant, model):
    rows = windows(library_text().held_out, 1024, limit=SLICE)[:4]
    shares = zero_shares(model, rows)
    stated = card(variant)["zeros_before_last_projection"]
    assert shares == pytest.approx(stated, abs=0.1)
    if variant == "swiglu":
        assert max(shares) == 0.0
    else:
        assert min(shares) > 0.5 and sum(shares) / len(shares) > 0.7


def test_what_is_shipped_is_loaded(tmp_path):
    trained = train(replace(TINY, variant="relu2"), TEXT)
    held_out = replace(TEXT, held_out=TEXT.training)
    stated = ship(replace(TINY, variant="relu2"), trained, held_out, folder=tmp_path)
    rows = windows(TEXT.training, TINY.sizes.context)
    loaded = load("relu2", folder=tmp_path)
    assert float(window_bits(predictor(loaded), rows).mean()) == pytest.approx(stated.stored)
    assert 0 < abs(stated.full - stated.stored) < 0.01
    found = card("relu2", folder=tmp_path)
    assert found["text"]["digest"] == TEXT.digest
    assert found["recipe"]["stages"][1]["tokens"] == STAGES[1].tokens
    assert math.isclose(found["held_out_bits_per_byte"]["as_stored"], stated.stored, abs_tol=1e-5)
    assert len(found["zeros_before_last_projection"]) == TINY.sizes.layers


def test_weights_that_do_not_fit_their_card_are_refused(tmp_path):
    trained = train(TINY, TEXT, stop=1)
    ship(TINY, trained, replace(TEXT, held_out=TEXT.training), folder=tmp_path)
    path = tmp_path / "swiglu.yaml"
    path.write_text(path.read_text().replace("layers: 2", "layers: 1"))
    with pytest.raises(ValueError, match=r"do not fit: model\.layers\.1"):
        load("swiglu", folder=tmp_path)


def test_what_is_missing_says_how_it_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`python -m benchmarks\.train --variant relu2`"):
        load("relu2", folder=tmp_path)
    with pytest.raises(ValueError, match="there are: swiglu, relu2"):
        load("gelu")
