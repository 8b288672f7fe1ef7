"""Neurons that each prompt chooses, through real classes: from the prompt's graph to its steps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenpass
from tests.models.harness import relative
from tokenpass.lower.carried import CACHES
from tokenpass.passes.activation_sparsity.policies.core_matching import core_counts
from tokenpass.passes.activation_sparsity.policies.griffin import relative_energy
from tokenpass.report import last_reports

transformers = pytest.importorskip("transformers", reason="the models are real classes")

SEEN = {"griffin": relative_energy, "core_matching": core_counts}
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=72)
    return transformers.LlamaForCausalLM(config)


def phi3() -> nn.Module:
    """Gate and up in one projection."""
    sizes = SIZES | {"pad_token_id": 0, "intermediate_size": 72}
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes))


def opt() -> nn.Module:
    """No gate, and biases."""
    sizes = SIZES | {"ffn_dim": 72, "word_embed_proj_dim": 32, "dropout": 0.0}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**sizes))


def gemma() -> nn.Module:
    """A gate by the tanh form of gelu."""
    config = transformers.GemmaConfig(
        **SIZES, num_key_value_heads=1, head_dim=8, intermediate_size=72
    )
    return transformers.GemmaForCausalLM(config)


MODELS = {make.__name__: make for make in (llama, phi3, opt, gemma)}
LAST = {"llama": "down_proj", "phi3": "down_proj", "opt": "fc2", "gemma": "down_proj"}


def ready(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name]().eval().requires_grad_(False)


def options(policy: str = "griffin", share: float = 0.5, **more: Any) -> dict[str, Any]:
    """Levels that are fixed, and every call held against the reference of its plan."""
    found = {"passes": [{"activation_sparsity": {"policy": policy, "sparsity": share}}]}
    found |= {"budget": 0.9, "pack_memory": 2.0, "lowering": "eager", "verify": "always"}
    return {**found, "on_failure": "raise", **more}


def compiled(model: nn.Module, **how: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="tokenpass", options=options(**how))


def tokens(count: int, seed: int, batch: int = 1) -> Tensor:
    return torch.randint(1, 61, (batch, count), generator=torch.Generator().manual_seed(seed))


class Generation:
    """A cache and what was said on it."""

    def __init__(self, model: Callable[..., Any], cache: Any = None) -> None:
        self.model, self.cache = model, cache or transformers.DynamicCache()

    def say(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True)
        return found.logits[:, -1]


class Expected:
    """The same by hooks on the dense model: a prompt is watched, a step has its neurons alone."""

    def __init__(self, model: nn.Module, last: str, policy: str, share: float) -> None:
        self.plain, self.policy, self.share = Generation(model), policy, share
        self.seen: dict[str, Tensor] = {}
        self.modules = [(n, m) for n, m in model.named_modules() if n.endswith(last)]

    def hooked(self, what: Callable[[str, Tensor], Tensor], ids: Tensor) -> Tensor:
        hooks = [
            module.register_forward_pre_hook(lambda _, args, n=name: (what(n, args[0]),))
            for name, module in self.modules
        ]
        try:
            return self.plain.say(ids)
        finally:
            for hook in hooks:
                hook.remove()

    def prompt(self, ids: Tensor) -> Tensor:
        def watch(name: str, hidden: Tensor) -> Tensor:
            more = SEEN[self.policy](hidden.flatten(0, -2))
            self.seen[name] = self.seen[name] + more if name in self.seen else more
            return hidden

        return self.hooked(watch, ids)

    def step(self, ids: Tensor) -> Tensor:
        def mask(name: str, hidden: Tensor) -> Tensor:
            entries = hidden.shape[-1]
            ranked = self.seen[name].sort(descending=True, stable=True).indices
            kept = torch.zeros(entries).scatter(0, ranked[: round((1 - self.share) * entries)], 1.0)
            return hidden * kept.to(hidden.dtype)

        return self.hooked(mask, ids)


def assert_agree(
    mine: Generation, expected: Expected, prompts: Sequence[Tensor], steps: int = 3
) -> None:
    """Both say the same to prompts and steps; sets matter."""
    for ids in prompts:
        assert relative(mine.say(ids), expected.prompt(ids)) < 1e-5
    for step in range(steps):
        ids = tokens(1, seed=step, batch=prompts[0].shape[0])
        assert relative(mine.say(ids), expected.step(ids)) < 1e-5


def lossy_edits() -> int:
    found = [[e for e in r.plan.edits if e.policy in SEEN] for r in last_reports()]
    return max(map(len, found), default=0)


@pytest.mark.parametrize("policy", SEEN)
@pytest.mark.parametrize("name", MODELS)
def test_each_prompt_has_its_neurons(name: str, policy: str) -> None:
    model = ready(name)
    run = compiled(model, policy=policy, share=0.4)
    for seed in (1, 2):
        mine = Generation(run)
        assert_agree(mine, Expected(model, LAST[name], policy, 0.4), [tokens(20, seed)])
    assert lossy_edits() == 2


def test_prompts_without_a_set_differ() -> None:
    """What the tests above compare is not dense."""
    model = ready("llama")
    mine, plain = Generation(compiled(model, share=0.6)), Generation(model)
    assert relative(mine.say(tokens(20, 1)), plain.say(tokens(20, 1))) < 1e-5
    assert relative(mine.say(tokens(1, 0)), plain.say(tokens(1, 0))) > 1e-3


def test_two_generations_step_by_step() -> None:
    model = ready("llama")
    run = compiled(model)
    pairs = [(Generation(run), Expected(model, "down_proj", "griffin", 0.5)) for _ in range(2)]
    for seed, (mine, expected) in enumerate(pairs):
        assert_agree(mine, expected, [tokens(20, seed + 1)], steps=0)
    for step in range(4):
        for mine, expected in pairs:
            ids = tokens(1, seed=step)
            assert relative(mine.say(ids), expected.step(ids)) < 1e-5


def test_a_prompt_in_pieces_and_a_second_turn() -> None:
    model = ready("llama")
    mine, expected = Generation(compiled(model)), Expected(model, "down_proj", "griffin", 0.5)
    assert_agree(mine, expected, [tokens(20, 1), tokens(12, 2)])
    assert_agree(mine, expected, [tokens(9, 3)])


def test_a_batch_shares_its_set() -> None:
    model = ready("llama")
    mine, expected = Generation(compiled(model)), Expected(model, "down_proj", "griffin", 0.5)
    assert_agree(mine, expected, [tokens(20, 1, batch=2)])
    assert lossy_edits() == 2


def test_a_cropped_cache_keeps_its_set() -> None:
    model = ready("llama")
    mine, expected = Generation(compiled(model)), Expected(model, "down_proj", "griffin", 0.5)
    assert_agree(mine, expected, [tokens(20, 1)])
    for one in (mine, expected.plain):
        one.cache.crop(-2)
    ids = tokens(1, 8)
    assert relative(mine.say(ids), expected.step(ids)) < 1e-5


def test_a_cache_that_no_prompt_graph_filled_loses_nothing() -> None:
    model = ready("llama")
    plain, run = Generation(model), compiled(model)
    plain.say(tokens(20, 1))
    other = Generation(model)
    other.say(tokens(20, 1))
    mine = Generation(run, other.cache)
    for step in range(3):
        assert relative(mine.say(tokens(1, step)), plain.say(tokens(1, step))) < 1e-5
    assert lossy_edits() == 2


def test_a_static_cache() -> None:
    model = ready("llama")
    run = compiled(model, verify="never")

    def cache() -> Any:
        return transformers.StaticCache(config=model.config, max_cache_len=40)

    for seed in (1, 2):
        mine = Generation(run, cache())
        assert_agree(mine, Expected(model, "down_proj", "griffin", 0.5), [tokens(20, seed)])
    mine.cache.reset()
    assert_agree(mine, Expected(model, "down_proj", "griffin", 0.5), [tokens(20, 5)])


def test_through_generate() -> None:
    model = ready("llama")
    dense = model.generate(tokens(12, 1), max_new_tokens=6, do_sample=False)
    model.forward = torch.compile(
        model.forward, backend="tokenpass", options=options(lowering="inductor", verify="never")
    )
    found = model.generate(tokens(12, 1), max_new_tokens=6, do_sample=False)
    assert found.shape == dense.shape and lossy_edits() == 2
    del found
    gc.collect()
    CACHES.forget_freed()
    assert not CACHES.known, "what a finished generation left is gone"


def test_a_share_that_the_planner_chooses() -> None:
    model = ready("llama")
    passes = [{"activation_sparsity": {"policy": "griffin"}}]
    run = torch.compile(
        model,
        backend="tokenpass",
        options=options(passes=passes, budget=0.9, objective="flops"),
    )
    mine, plain = Generation(run), Generation(model)
    mine.say(tokens(20, 1))
    plain.say(tokens(20, 1))
    assert relative(mine.say(tokens(1, 0)), plain.say(tokens(1, 0))) > 1e-4
    assert last_reports()[-1].plan.share <= 0.9


@pytest.mark.parametrize(
    "more", [{"budget": 1.0, "passes": [{"activation_sparsity": {"policy": "griffin"}}]}]
)
def test_nothing_is_kept_where_nothing_may_be_left_out(more: dict[str, Any]) -> None:
    mine = Generation(torch.compile(ready("llama"), backend="tokenpass", options=options(**more)))
    mine.say(tokens(20, 1))
    assert not CACHES.known


def test_without_a_cache_nothing_is_kept() -> None:
    model = ready("llama")
    with torch.no_grad():
        compiled(model)(input_ids=tokens(20, 1), use_cache=False)
    assert not CACHES.known


def test_limits_hold_for_what_is_kept() -> None:
    model = ready("llama")
    passes = [{"activation_sparsity": {"policy": "griffin", "sparsity": 0.5, "layers": 1}}]
    Generation(torch.compile(model, backend="tokenpass", options=options(passes=passes))).say(
        tokens(20, 1)
    )
    ((_, kept),) = {id(c): (id(c), c) for _, c in CACHES.known.values()}.values()
    assert [site for _, site in kept.kept] == ["model.layers.1.mlp.down_proj:projection"]


def test_gradients_keep_nothing() -> None:
    model = MODELS["llama"]().eval()
    compiled(model, verify="never")(input_ids=tokens(20, 1), use_cache=True)
    assert not CACHES.known


def test_what_is_kept_is_told() -> None:
    model = ready("llama")
    Generation(compiled(model)).say(tokens(20, 1))
    (report,) = last_reports()
    assert any("griffin" in note and "2" in note for note in report.plan.notes)
    assert "griffin" in tokenpass.report.text(report)
