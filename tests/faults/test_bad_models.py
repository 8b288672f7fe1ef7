"""Odd models, inputs and requests: dense results or one clear error, and never a wrong number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.zoo.common import ready
from tests.models.zoo.hand_written import Block
from tokenpass.errors import ConfigError, OptionError, PlanMismatchError, UserError
from tokenpass.report import last_reports

OPTIONS = {"lowering": "eager", "objective": "flops", "budget": 0.8, "on_failure": "raise"}


class Tiny(nn.Module):
    """One block and a mean."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(layers))

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(model: Any, *inputs: Any, **options: Any) -> Any:
    torch._dynamo.reset()
    given = {"lowering": "eager"} if "config" in options else OPTIONS
    with torch.no_grad():
        return torch.compile(model, backend="tokenpass", options={**given, **options})(*inputs)


class Raises(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        raise ArithmeticError("of the model's own")


class RaisesOnData(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if x.isfinite().all():
            raise ArithmeticError("of the model's own")
        return x


@pytest.mark.parametrize("kind", [Raises, RaisesOnData])
def test_an_error_of_the_model_stays_its_own(kind: type[nn.Module], x: Tensor) -> None:
    with pytest.raises(ArithmeticError, match="of the model's own"):
        run(ready(kind()), x)


class Mixed(Tiny):
    """Hands out all kinds of values."""

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        tokens = x.shape[1]
        return {
            0: out,
            1: tokens,
            "none": None,
            "text": "word",
            "list": [out * 2, (tokens + 1, 2.5)],
            "flag": True,
            "same": x,
            "constant": torch.ones(2),
        }


def test_outputs_that_are_no_tensors(x: Tensor) -> None:
    model = ready(Mixed(), 1.5)
    with torch.no_grad():
        dense = model(x)
    found = run(model, x)
    assert last_reports()[-1].outcome == "edited"
    assert list(found) == list(dense)
    assert found[1] == 24 and found["none"] is None and found["text"] == "word"
    assert found["list"][1] == (25, 2.5) and found["flag"] is True
    assert found["same"] is x and torch.equal(found["constant"], torch.ones(2))
    assert torch.equal(found["list"][0], found[0] * 2)
    assert found[0].shape == dense[0].shape
    assert 0 < (found[0] - dense[0]).norm() < dense[0].norm()


class Plain(nn.Module):
    """Blocks of fused attention, whose reshapes take empty batches and no tokens too."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for qkv, up in zip(self.qkv, self.up, strict=True):
            q, k, v = qkv(x)[:, None].chunk(3, -1)
            x = x + F.scaled_dot_product_attention(q, k, v)[:, 0]
            x = x + F.gelu(up(x))
        return x.mean(1)


class Nothing(Tiny):
    """No tensor comes out."""

    def forward(self, x: Tensor) -> Any:
        return x.shape[1], None, "word"


def test_no_tensor_comes_out(x: Tensor) -> None:
    assert run(Nothing(), x) == (24, None, "word")


def attend(x: Tensor) -> Tensor:
    """Attention without a parameter, and without a module."""
    for _ in range(2):
        x = x + F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
    return x.mean(1)


def test_a_model_without_parameters(x: Tensor) -> None:
    found, dense = run(attend, x), attend(x)
    assert found.shape == dense.shape
    assert (found - dense).norm() < dense.norm()


def test_meta_tensors(x: Tensor) -> None:
    model = Tiny().double().to("meta").eval()
    found = run(model, x.to("meta"))
    assert found.device.type == "meta" and found.shape == (2, 16)


@pytest.mark.parametrize(
    "shape",
    [(2, 0), (0, 24), (0, 0), (1, 1), (2, 1), (2, 2), (2, 3), (1, 4), (2, 6)],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
@pytest.mark.parametrize("name", ["token_merge", "token_prune"])
def test_hardly_any_tokens(shape: tuple[int, ...], name: str) -> None:
    model, x = ready(Plain(), 1.5), torch.randn(*shape, 16, dtype=torch.float64)
    policy = {"token_merge": {}, "token_prune": {"policy": "key_norm"}}[name]
    with torch.no_grad():
        dense = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(model, x, passes=[{name: policy}])
        again = run(model, x, passes=[{name: policy | {"keep_ratio": 0.5}}])
    for one in (found, again):
        assert one.shape == dense.shape
        assert torch.equal(one.isnan(), dense.isnan())
        if shape[1] < 2 or not shape[0]:
            assert torch.equal(one.nan_to_num(), dense.nan_to_num())


@pytest.mark.parametrize("tokens", [5, 8, pytest.param(12, marks=pytest.mark.slow), 16])
def test_few_tokens_and_many_layers(tokens: int) -> None:
    """Sites are priced with counts of their own; those that find none left stay dense alone."""
    model, x = ready(Plain(6), 1.5), torch.randn(2, tokens, 16, dtype=torch.float64)
    found = run(model, x, passes=[{"token_prune": {"policy": "key_norm"}}])
    report = last_reports()[-1]
    assert report.outcome == "edited"
    refused = [r.where for r in report.rejections if r.code == "too_few_tokens"]
    assert bool(refused) == (tokens < 12)
    assert not {e.site for e in report.plan.edits} & set(refused)
    assert found.isfinite().all()


def with_nan_weight(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model.get_parameter("blocks.0.qkv.weight")[3, 3] = float("nan")


def with_infinite_weight(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model.get_parameter("blocks.0.qkv.weight")[20, 3] = float("inf")


def with_nan_token(model: nn.Module, x: Tensor) -> None:
    x[0, 5] = float("nan")


@pytest.mark.parametrize("spoil", [with_nan_weight, with_infinite_weight, with_nan_token])
@pytest.mark.parametrize(
    "name", ["token_merge", pytest.param("token_prune", marks=pytest.mark.slow)]
)
def test_nan_stays_nan(spoil: Callable[..., None], name: str, x: Tensor) -> None:
    model = ready(Tiny(2), 1.5)
    spoil(model, x)
    policy = {"token_merge": {}, "token_prune": {"policy": "key_norm"}}[name]
    with torch.no_grad():
        dense = model(x)
    found = run(model, x, passes=[{name: policy}], verify="first")
    assert last_reports()[-1].outcome == "edited"
    assert torch.equal(found.isfinite(), dense.isfinite())


def test_a_layer_that_is_not_there(x: Tensor) -> None:
    model = ready(Tiny(), 1.5)
    with torch.no_grad():
        dense = model(x)
    found = run(model, x, passes=[{"token_merge": {"layers": [99]}}])
    report = last_reports()[-1]
    assert torch.equal(found, dense) and report.outcome == "dense"


@pytest.mark.parametrize("layers", [99.5, "some", -1, [[]], {"a": 1}])
def test_layers_that_are_no_layers(x: Tensor, layers: Any) -> None:
    with pytest.raises(OptionError, match="layers"):
        run(ready(Tiny()), x, passes=[{"token_merge": {"layers": layers}}])


@pytest.fixture(scope="module")
def planned() -> tuple[nn.Module, str]:
    """A model, and the text of its plan."""
    torch.manual_seed(0)
    model = ready(Tiny(1), 1.5)
    run(model, torch.randn(2, 24, 16, dtype=torch.float64), passes=["token_merge"])
    return model, last_reports()[-1].plan_yaml


@pytest.fixture
def plan(planned: tuple[nn.Module, str], tmp_path: Path) -> tuple[nn.Module, Path]:
    """The model, and a file of its plan to spoil."""
    path = tmp_path / "plan.yaml"
    path.write_text(planned[1], encoding="utf-8")
    return planned[0], path


@pytest.mark.parametrize(
    ("old", "new", "kind", "told"),
    [
        ("token_merge", "token_prune", UserError, "token_prune|policy"),
        ("token_merge", "token_mrge", ConfigError, "did you mean 'token_merge'"),
        ("token_merge", "dead_tokens", UserError, "dead_tokens|policy"),
        ("policy: head_cosine", "policy: key_norm", ConfigError, "policy"),
        ("after_attention", "block_output", PlanMismatchError, "no site"),
        ("blocks.0", "blocks.99", PlanMismatchError, "no site"),
        ("level: ", "level: tokens//0 #", PlanMismatchError, "level"),
        ("level: ", "level: tokens/(tokens-tokens) #", PlanMismatchError, "level"),
        ("level: ", "level: __import__('os') #", ConfigError, "level"),
        ("level: ", "level: 1e400 #", ConfigError, "level"),
    ],
)
def test_a_plan_that_does_not_fit(
    plan: tuple[nn.Module, Path], x: Tensor, old: str, new: str, kind: type[Exception], told: str
) -> None:
    model, path = plan
    text = path.read_text(encoding="utf-8")
    if new.endswith("#"):  # the rest of the line goes with the comment
        text = "\n".join(
            line.partition("level: ")[0] + new.removesuffix(" #") + "}"
            if "level: " in line
            else line
            for line in text.splitlines()
        )
    else:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(kind, match=told) as caught:
        run(model, x, config=path)
    assert len(str(caught.value).splitlines()) <= 2
