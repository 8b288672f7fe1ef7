"""What a call changes of its inputs is put back: contents, lists, mappings, attributes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from tokenpass.check.inputs import Repeated, described, parts, same, timeable
from tokenpass.check.pairs import seconds


class Layer:
    def __init__(self) -> None:
        self.keys, self.owner, self.length = torch.zeros(1, 2), self, 0


class Cache:
    def __init__(self) -> None:
        self.layers, self.named = [Layer()], OrderedDict(a=torch.ones(2))
        self.model = nn.Linear(1, 1)


def changes(x: Tensor, cache: Cache) -> Tensor:
    x.add_(1)
    layer = cache.layers[0]
    layer.keys = torch.cat([layer.keys, x])
    layer.length += 1
    cache.layers.append(Layer())
    cache.named["b"] = x
    cache.named["a"].zero_()
    cache.extra = 1
    return x


def test_all_that_is_changed_is_put_back() -> None:
    x, cache = torch.ones(1, 2), Cache()
    keys, names = cache.layers[0].keys, cache.named
    repeated = Repeated(((x, cache), {}))
    for _ in range(2):
        found = repeated.result(changes, lambda out: out.clone())
        assert found.tolist() == [[2.0, 2.0]]
        assert x.tolist() == [[1.0, 1.0]] and cache.layers[0].keys is keys
        assert len(cache.layers) == 1 and cache.layers[0].length == 0
        assert cache.named is names and list(names) == ["a"] and names["a"].sum() == 2
        assert not hasattr(cache, "extra")


def test_what_raises_is_put_back_too() -> None:
    x = torch.ones(1)

    def fails(x: Tensor) -> None:
        x.zero_()
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - the test's own
        Repeated(((x,), {})).result(fails, lambda out: out)
    assert x.item() == 1


def test_inference_tensors_have_no_versions() -> None:
    with torch.inference_mode():
        x = torch.ones(1)
        repeated = Repeated(((x,), {}))
        repeated.result(lambda x: x.add_(1), lambda out: out)
        assert x.item() == 1


def test_what_is_not_the_call_s_own_is_left_alone() -> None:
    class Holder:
        def __init__(self) -> None:
            self.module, self.function, self.x = torch, torch.relu, torch.ones(1)

    holder = Holder()
    found = list(parts(holder))
    assert len(found) == 2 and found[0] is holder and found[1] is holder.x


def test_places_count() -> None:
    one, other = torch.ones(1), torch.ones(1)
    assert same({"a": one}.items(), {"a": one}.items())
    assert not same({"a": one}.items(), {"a": other}.items())
    assert not same(enumerate([one]), enumerate([one, other]))


def test_in_words() -> None:
    call = ((torch.zeros(3, 2), Cache()), {"flag": True})
    told = "float32[3, 2], float32[1, 2], float32[2]; parameters bfloat16"
    assert described(nn.Linear(2, 2).bfloat16(), call) == told


def test_what_is_timed_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    work = timeable(lambda: done.append("called"), Repeated(((), {})))

    def clock() -> float:
        done.append("read")
        return float(len(done))

    seconds(work, clock)
    assert done == ["waited", "read", "called", "waited", "read"]


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_decoding_step_can_be_repeated(kind: Any) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=9, num_attention_heads=2, **sizes)
    model = LlamaForCausalLM(config).eval()
    cache = kind(config=config, **({"max_cache_len": 6} if kind is StaticCache else {}))
    with torch.no_grad():
        model(torch.arange(4)[None], past_key_values=cache)
        call = ((torch.tensor([[5]]),), {"past_key_values": cache})
        told, repeated = described(model, call), Repeated(call)
        found = [repeated.result(model, lambda out: out.logits.clone()) for _ in range(4)]
    assert all(torch.equal(found[0], one) for one in found)
    assert described(model, call) == told
