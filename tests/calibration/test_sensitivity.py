"""Sensitivities against the model run by hand with one input thinned out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenpass import calibrate
from tokenpass.calibration.sensitivity import first_tokens, relative
from tokenpass.statistics import Calibration

WIDTH = 10


class Two(nn.Module):
    """Two layers, a relu between them, and a cache that is handed out first."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 24)
        self.down, self.last = nn.Linear(24, WIDTH), nn.Linear(WIDTH, 5)
        self.unused = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, rest = self.key(x), self.unused(x)
        y = x + keys.softmax(-1) + self.down(F.relu(self.up(x)))
        return keys, rest, self.last(y.tanh())


@pytest.fixture
def model() -> Two:
    torch.manual_seed(0)
    return Two().eval()


def by_hand(model: Two, name: str, calibration: Calibration, x: Tensor) -> float:
    """One layer's input thinned out by a hook, all outputs of layers noted."""
    magnitude = calibration.sites[f"{name}:projection"].magnitude.pooled()
    zeros = float(magnitude.share_below(0.0))
    threshold = float(magnitude.quantile(zeros + (1 - zeros) / 2))

    def thin(_: nn.Module, args: Any) -> Any:
        return (torch.where(args[0].abs() > threshold, args[0], 0.0),)

    def both(thinned: bool) -> tuple[Tensor, Tensor]:
        layer, own = model.get_submodule(name), []
        hooks = [layer.register_forward_hook(lambda m, a, out: own.append(out))]
        if thinned:
            hooks.append(layer.register_forward_pre_hook(thin))
        out = model(x)[2]
        for hook in hooks:
            hook.remove()
        return own[0], out

    with torch.no_grad():
        (own, out), (thin_own, thin_out) = both(False), both(True)
    far = torch.linalg.norm(thin_out - out) / torch.linalg.norm(out)
    return float(far / (torch.linalg.norm(thin_own - own) / torch.linalg.norm(own)))


def test_sensitivities_are_ratios_of_errors(model: Two) -> None:
    batches = [torch.randn(2, 6, WIDTH), torch.randn(2, 6, WIDTH)]
    found = calibrate(model, batches, progress=False)
    for name in ("key", "up", "down", "last"):
        told = found.sites[f"{name}:projection"].sensitivity
        assert told == pytest.approx(by_hand(model, name, found, batches[0]), rel=1e-4), name
    assert found.sites["last:projection"].sensitivity == pytest.approx(1.0)
    assert found.sites["unused:projection"].sensitivity == pytest.approx(1.0)


def test_they_can_be_left_out(model: Two) -> None:
    found = calibrate(model, [torch.randn(2, WIDTH)], progress=False, sensitivity=False)
    assert all(site.sensitivity is None for site in found.sites.values())


def test_nothing_to_drop_is_not_measured() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    found = calibrate(model, [torch.zeros(2, 4)], progress=False)
    assert found.sites["0:projection"].sensitivity is None


def test_what_leads_through_a_value_that_is_written_is_not_measured() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.register_buffer("cache", torch.zeros(8, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            self.cache[: x.shape[0]] = self.key(x)  # type: ignore[index]
            return self.out(self.cache.sum(0, keepdim=True) + x)

    model = Cached().eval()
    found = calibrate(model, [torch.randn(3, WIDTH)], progress=False)
    assert found.sites["key:projection"].sensitivity is None
    assert found.sites["out:projection"].sensitivity == pytest.approx(1.0)


def test_relative_errors() -> None:
    value = torch.tensor([3.0, 4.0])
    assert relative(value * 1.5, value) == pytest.approx(0.5)
    assert relative(value, torch.zeros(2)) is None
    assert relative(torch.tensor([float("nan"), 1.0]), value) is None


def test_the_first_tokens_of_a_batch() -> None:
    ids = torch.arange(2 * 300).view(2, 300)
    assert torch.equal(first_tokens(ids), ids[:1, :256])
    assert torch.equal(first_tokens((ids,))[0], ids[:1, :256])
    right = torch.ones_like(ids)
    right[:, 290:] = 0
    left = right.flip(1)
    given = {"input_ids": ids, "attention_mask": right, "use_cache": False}
    assert torch.equal(first_tokens(given)["input_ids"], ids[:1, :256])
    assert first_tokens(given)["use_cache"] is False
    given = {"input_ids": ids, "attention_mask": left}
    assert torch.equal(first_tokens(given)["input_ids"], ids[:1, -256:])
    many = torch.zeros(40, 16, dtype=torch.int64)
    assert first_tokens(many).shape == (16, 16)
    for whole in (
        torch.zeros(2, 300),
        ids[:, :100],
        {"ids": ids, "image": torch.zeros(2, 3, 4, 4)},
    ):
        assert first_tokens(whole) is whole
