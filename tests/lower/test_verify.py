"""verify: the dense graph runs beside the edited one, and a difference is never passed over."""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx

from tokenpass.backend import tokenpass as backend
from tokenpass.errors import FallbackWarning, InternalError
from tokenpass.lower.verify import Promise, distance, is_random, verified

EXACT = Promise("f00d", exact=True, main=0)
LOSSY = Promise("f00d", exact=False, error=0.5, main=0)


def dense_graph(function: Any = lambda x: (x * 2, x + 1)) -> GraphModule:
    return make_fx(function)(torch.ones(3))


def wrap(
    compiled: Any,
    promise: Promise = EXACT,
    how: Literal["first", "always"] = "always",
    on_failure: Literal["fallback", "raise"] = "raise",
    dense: GraphModule | None = None,
) -> Any:
    module = dense_graph() if dense is None else dense
    return verified(compiled, module, promise, how=how, on_failure=on_failure)


def right(x: Tensor) -> tuple[Tensor, ...]:
    return x * 2, x + 1


def slightly_wrong(x: Tensor) -> tuple[Tensor, ...]:
    return x * 2.01, x + 1


def shorter(x: Tensor) -> tuple[Tensor, ...]:
    return x[:2] * 2, x + 1


def not_finite(x: Tensor) -> tuple[Tensor, ...]:
    return x * 2, x / 0


def test_equal_outputs_pass_unchanged() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(wrap(right)(x)[0], x * 2)


@pytest.mark.parametrize(
    ("compiled", "message"),
    [
        (slightly_wrong, r"graph f00d: output 0 is 0.005 from dense .* only exact edits"),
        (shorter, r"output 0 is torch.float32 \[2\] instead of torch.float32 \[3\]"),
        (not_finite, "output 1 has values that are not finite"),
        (lambda x: (x * 2,), "1 outputs instead of 2"),
        (lambda x: ((x * 2).double(), x + 1), "output 0 is torch.float64"),
    ],
)
def test_a_defect_raises(compiled: Any, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        wrap(compiled)(torch.ones(3))


def test_a_defect_falls_back_to_dense_with_one_warning() -> None:
    call, x = wrap(slightly_wrong, on_failure="fallback"), torch.ones(3)
    with pytest.warns(FallbackWarning, match="graph f00d.*runs dense, eagerly"):
        assert torch.equal(call(x)[0], x * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(call(x)[0], x * 2)


def test_lossy_plans_may_differ_in_values_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tokenpass"):
        wrap(slightly_wrong, LOSSY)(torch.ones(3))
    assert "graph f00d: error 0.005, estimated 0.5" in caplog.text
    for compiled in (shorter, not_finite):
        with pytest.raises(InternalError):
            wrap(compiled, LOSSY)(torch.ones(3))


def test_first_checks_one_call_and_always_each() -> None:
    calls = 0

    def later_wrong(x: Tensor) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        return right(x) if calls == 1 else slightly_wrong(x)

    first = wrap(later_wrong, how="first")
    first(torch.ones(3))
    first(torch.ones(3))
    calls, always = 0, wrap(later_wrong, how="always")
    always(torch.ones(3))
    with pytest.raises(InternalError):
        always(torch.ones(3))


def test_outputs_that_may_shrink_are_left_out() -> None:
    wrap(shorter, Promise("f00d", exact=True, main=1, may_shrink=frozenset({0})))(torch.ones(3))
    with pytest.raises(InternalError, match="output 0"):
        wrap(shorter, Promise("f00d", exact=True, main=1))(torch.ones(3))


def test_inputs_that_the_graph_writes_to_are_written_once() -> None:
    dense = dense_graph(lambda x: (x.add_(1) * 2,))
    compiled = Interpreter(dense).run
    x = torch.zeros(3)
    (y,) = wrap(compiled, dense=dense)(x)
    assert torch.equal(x, torch.ones(3))
    assert torch.equal(y, torch.full((3,), 2.0))


def test_random_graphs_are_compared_by_shape() -> None:
    dense = dense_graph(lambda x: (x + torch.rand_like(x),))
    assert is_random(dense)
    wrap(Interpreter(dense).run, dense=dense)(torch.ones(3))
    with pytest.raises(InternalError):
        wrap(lambda x: (x[:1],), dense=dense)(torch.ones(3))


def test_attention_is_random_only_with_dropout() -> None:
    def attend(p: float) -> GraphModule:
        def run(x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=p)

        return make_fx(run, pre_dispatch=True)(torch.ones(1, 1, 4, 4))

    assert not is_random(attend(0.0))
    assert is_random(attend(0.5))


def test_distance() -> None:
    inf = float("inf")
    assert distance(torch.tensor([1.0, -inf]), torch.tensor([1.0, -inf])) == 0
    assert distance(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert distance(torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0])) == 0
    assert distance(torch.ones(0), torch.ones(0)) == 0
    assert distance(torch.ones(2), torch.zeros(2)) == inf


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            heads = x.view(x.shape[0], -1, 4, 8).transpose(1, 2)
            mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
            x = x + mixed.transpose(1, 2).reshape(x.shape)
            x = x + self.mlp(x)
        return x[:, 0]


@pytest.mark.parametrize("budget", [1.0, 0.5])
@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_through_the_backend_with_gradients(
    budget: float, lowering: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = Reader().eval()
    options = {
        "budget": budget,
        "objective": "flops",
        "lowering": lowering,
        "verify": "always",
        "on_failure": "raise",
    }
    compiled = torch.compile(model, backend=backend, options=options)
    x = torch.randn(2, 64, 32)
    with caplog.at_level(logging.INFO, logger="tokenpass"):
        compiled(x).sum().backward()
    assert model.mlp.weight.grad is not None
    assert ("estimated" in caplog.text and ": error " in caplog.text) == (budget < 1)


def test_an_edit_that_is_not_exact_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_little(module: GraphModule, *_: Any) -> Any:
        return lambda *inputs: [out * 1.01 for out in Interpreter(module).run(*inputs)]

    monkeypatch.setattr("tokenpass.backend.lower", off_by_a_little)
    options: dict[str, Any] = {"objective": "flops", "verify": "first", "on_failure": "raise"}
    with torch.no_grad(), pytest.raises(InternalError, match="only exact edits were made"):
        torch.compile(Reader().eval(), backend=backend, options=options)(torch.randn(2, 64, 32))


def test_a_lossy_plan_is_held_against_its_reference() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])

    def planned(inputs: Any) -> tuple[Tensor, ...]:
        return inputs[0] * 2.5, inputs[0] + 1

    def near(x: Tensor) -> tuple[Tensor, ...]:
        return x * 2.51, x + 1  # within a quarter of what the plan itself loses

    def far(x: Tensor) -> tuple[Tensor, ...]:
        return x * 2.2, x + 1

    def held(compiled: Any) -> Any:
        module = dense_graph()
        return verified(
            compiled, module, LOSSY, how="always", on_failure="raise", reference=planned
        )

    assert torch.equal(held(near)(x)[0], x * 2.51)
    with pytest.raises(InternalError, match="from the plan's reference"):
        held(far)(x)


def test_a_reference_that_cannot_run_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(inputs: Any) -> Any:
        raise InternalError("no reference for a pass")

    module = dense_graph()
    run = verified(slightly_wrong, module, LOSSY, how="first", on_failure="raise", reference=broken)
    with caplog.at_level(logging.WARNING, logger="tokenpass.verify"):
        run(torch.ones(3))
    assert "InternalError: no reference for a pass" in caplog.text
