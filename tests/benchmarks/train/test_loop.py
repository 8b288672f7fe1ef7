"""Training on a tiny model: it learns, repeats itself, and continues where it stopped."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.train.loop import draw, rate, train
from benchmarks.train.recipe import RECIPES, Recipe, Sizes, Stage, build
from benchmarks.train.text import Source, as_tensor, split

SIZES = Sizes(mlp_width=32, layers=2, width=32, heads=2, key_heads=1, head_width=16, context=64)
STAGES = (Stage(tokens=24, batch=4, steps=12), Stage(tokens=48, batch=2, steps=6))
TINY = Recipe("swiglu", SIZES, STAGES, warm_up=4, peak_rate=1e-2, compiled=False, bf16=False)
TEXT = split([Source("ast.py", b"for name, value in sorted(table.items()):\n    use(name)\n" * 40)])


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("variant", RECIPES)
def test_a_few_steps_reduce_the_loss(variant):
    found = train(replace(TINY, variant=variant), TEXT)
    assert len(found.losses) == TINY.steps
    assert found.losses[0] == pytest.approx(math.log2(256), abs=0.5)
    assert found.losses[-1] < 0.8 * found.losses[0]
    assert not found.model.training


def test_the_seed_decides_the_weights():
    first, again = train(TINY, TEXT), train(TINY, TEXT)
    assert first.losses == again.losses
    assert same_weights(first.model, again.model)
    assert train(replace(TINY, seed=1), TEXT).losses != first.losses


@pytest.mark.parametrize("stop", [5, 12, 14])
def test_a_stopped_run_continues_as_if_it_had_not_been(tmp_path, stop):
    checkpoint = tmp_path / "folder" / "run.pt"
    whole = train(TINY, TEXT)
    begun = train(TINY, TEXT, checkpoint=checkpoint, stop=stop)
    ended = train(TINY, TEXT, checkpoint=checkpoint)
    assert begun.losses + ended.losses == whole.losses
    assert same_weights(ended.model, whole.model)
    assert not same_weights(begun.model, whole.model)
    assert ended.seconds > begun.seconds > 0
    assert train(TINY, TEXT, checkpoint=checkpoint).losses == ()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "run.pt"
    train(TINY, TEXT, checkpoint=checkpoint, stop=1)
    with pytest.raises(ValueError, match="another recipe or from another text"):
        train(replace(TINY, clip=2.0), TEXT, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="remove it"):
        train(TINY, split([Source("ast.py", b"x" * 300)]), checkpoint=checkpoint)


def test_the_push_makes_activations_smaller():
    def size(push):
        recipe = replace(TINY, variant="relu2", push=push)
        found = train(recipe, TEXT)
        sizes = []
        for layer in found.model.model.layers:
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _, arguments: sizes.append(float(arguments[0].detach().mean()))
            )
        found.model(input_ids=as_tensor(TEXT.training)[None, :40].long())
        return sum(sizes)

    assert size(10.0) < 0.8 * size(0.0)


def test_progress_is_said():
    said = []
    train(TINY, TEXT, say=said.append, stop=3)
    assert len(said) == 1 and said[0].startswith("swiglu 3/18: ")


def test_the_rate_warms_up_and_falls_along_a_cosine():
    recipe = replace(TINY, peak_rate=1.0, last_rate=0.1)
    rates = [rate(recipe, step) for step in range(recipe.steps)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    middle = recipe.warm_up + (recipe.steps - recipe.warm_up) // 2
    assert rates[middle] == pytest.approx((1.0 + 0.1) / 2)
    assert rate(recipe, recipe.steps) == pytest.approx(0.1)


def test_a_restart_begins_a_cosine_of_its_own():
    stages = (*STAGES, Stage(tokens=48, batch=2, steps=8, restart=0.5))
    once, again = (replace(TINY, peak_rate=1.0, last_rate=0.1, stages=s) for s in (STAGES, stages))
    before = [rate(once, step) for step in range(once.steps)]
    assert [rate(again, step) for step in range(once.steps)] == before
    rest = [rate(again, step) for step in range(once.steps, again.steps)]
    assert rest[0] == 0.5 and rest[4] == pytest.approx(0.3)
    assert rest == sorted(rest, reverse=True)
    assert rate(again, again.steps) == pytest.approx(0.1)


def test_stages_follow_each_other():
    assert [TINY.stage_of(step).tokens for step in (0, 11, 12, 17)] == [24, 24, 48, 48]
    with pytest.raises(ValueError, match="step 18 of 18"):
        TINY.stage_of(18)


def test_windows_are_pieces_of_the_text_and_differ_by_step():
    content = as_tensor(TEXT.training)
    first, second = (draw(content, STAGES[0], 0, step) for step in (0, 1))
    assert first.shape == (4, 25)
    assert all(bytes(row.tolist()) in TEXT.training for row in first)
    assert not torch.equal(first, second)
    assert torch.equal(first, draw(content, STAGES[0], 0, 0))


def test_both_variants_weigh_the_same():
    def count(variant):
        model = build(variant, RECIPES[variant].sizes)
        return sum(value.numel() for value in model.parameters())

    assert count("swiglu") == count("relu2")


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="'gelu'; there are: swiglu, relu2"):
        build("gelu", SIZES)
