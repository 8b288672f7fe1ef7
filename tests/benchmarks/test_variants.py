"""Variants say what a user would."""

from benchmarks.variants import DENSE, pruning_variant, tokenpass_variant


def test_variants_say_what_the_user_would():
    assert DENSE.budget is None
    assert tokenpass_variant(0.5, seed=1).options == {"seed": 1}
    control = pruning_variant("random", 0.5)
    assert control.options["passes"] == [{"token_prune": {"policy": "random"}}]
