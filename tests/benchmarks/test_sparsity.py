"""What the benchmark of sparsity's quality calls a miss, how it fills levels, and its plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import sparsity_plot
from benchmarks.sparsity import Setting, filled, masked, masks_for, misses, settings
from tokenpass.passes.base import EntryMask, LossyChoice


def choice(site: str, weight: float) -> LossyChoice:
    """A projection whose error is `weight` times the square of what is left out."""

    def nothing(share: float) -> Any:
        raise AssertionError(share)

    return LossyChoice(
        "activation_sparsity",
        "teal",
        site,
        "one",
        0.8,
        0.0,
        lambda share: 1 - share,
        lambda share: weight * share**2,
        nothing,
        lambda share: EntryMask(torch.full((1,), share), share),
    )


def result(policy: str, ratio: float, **others: Any) -> dict[str, Any]:
    found = {"decoder": "relu2", "policy": policy, "allocation": "uniform", "share": 0.4}
    return {**found, "perplexity_ratio": ratio, **others}


def test_misses_are_told() -> None:
    good = [result("random", 9.0), result("wina", 1.02, allocation="water_filling")]
    assert not misses(good)
    assert misses([result("random", 9.0), result("wina", 1.04, allocation="water_filling")])
    assert misses([result("random", 1.01), result("teal", 1.02)])
    assert misses([result("random neurons", 1.01), result("cats", 1.02)])
    assert misses([result("natural zeros", 1.0001, share=0.0)])
    assert not misses([result("natural zeros", 1.0, share=0.0)])


def test_levels_go_where_they_cost_least() -> None:
    choices = [choice("cheap", 0.1), choice("dear", 1.0)]
    sizes = {"cheap": 100, "dear": 100}
    cheap, dear = filled(choices, 0.4, sizes)
    assert cheap > dear and (cheap + dear) / 2 == pytest.approx(0.4, abs=0.05)
    masks, error = masks_for(Setting("teal", "water_filling", 0.4), choices, sizes)
    assert masks.keys() <= sizes.keys() and error == pytest.approx(
        ((0.1 * cheap**2) ** 2 + (dear**2) ** 2) ** 0.5
    )


def test_every_policy_has_its_points() -> None:
    found = list(settings())
    assert len(found) == len(set(found))
    assert {"random", "random neurons", "wina", "top_k"} <= {one.policy for one in found}


def test_each_position_is_masked_by_itself() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3, bias=False)

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            logits = self.head(input_ids.float())
            return type("Output", (), {"logits": logits})()

    model = Model().eval()
    ids = torch.tensor([[[1, 5, 2, 9], [7, 1, 1, 8]]])
    with torch.no_grad():
        run = masked(model, {"head:projection": EntryMask(None, 0.5)})
        kept = torch.tensor([[[0, 5, 0, 9], [7, 0, 0, 8]]])
        assert torch.allclose(run(ids), model.head(kept.float()))


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    quality = [
        result(policy, 1.0 + share, decoder=decoder, allocation=allocation, share=share)
        for decoder in ("swiglu", "relu2")
        for policy in ("wina", "cats", "random")
        for allocation in ("uniform", "water_filling")
        for share in (0.3, 0.5)
    ]
    timed = [
        {"policy": name, "share": 0.5, "floor": None, "speedup": {"speedup": 1.5}}
        for name in ("teal", "chess")
    ]
    for name, results in (("quality", quality), ("speed", timed)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": results}))
    picture = tmp_path / "plot.png"
    arguments = [f"--{name}={tmp_path / name}.json" for name in ("quality", "speed")]
    assert sparsity_plot.main([*arguments, f"--output={picture}"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
