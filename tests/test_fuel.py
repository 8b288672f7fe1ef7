"""Fuel cuts a plan to its first edits; bisection names the first bad one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.zoo.common import ready
from tests.models.zoo.hand_written import Pooled
from tokenpass.errors import InternalError, OptionError
from tokenpass.pipeline.fuel import BISECT, FUEL
from tokenpass.report import LOG, last_reports
from tokenpass.rewrite.replay import Replay

OPTIONS = {"budget": 0.45, "lowering": "eager", "objective": "flops", "on_failure": "raise"}


def run(**options: Any) -> Tensor:
    LOG.clear()
    torch._dynamo.reset()
    torch.manual_seed(3)
    model = ready(Pooled(layers=4), 1.5)
    x = torch.randn(2, 24, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.compile(model, backend="tokenpass", options={**OPTIONS, **options})(x)


def test_fuel_carries_out_the_first_edits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    edits = last_reports()[0].plan.edits
    assert len(edits) >= 2
    for count in range(len(edits) + 1):
        monkeypatch.setenv(FUEL, str(count))
        run()
        (report,) = last_reports()
        assert report.plan.edits == edits[:count]
        assert report.plan.dropped == edits[count:]
        assert report.outcome == ("edited" if count else "dense")


@pytest.mark.parametrize("text", ["-1", "two", "1.5"])
def test_fuel_is_a_count(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(FUEL, text)
    with pytest.raises(OptionError, match=FUEL):
        run()


def test_bisection_names_the_first_bad_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that spoils the values behind its second edit."""
    reduce, done = Replay.reduce, "spoilt"

    def spoil(replay: Replay, node: Any, value: Any, action: Any) -> Any:
        out = reduce(replay, node, value, action)
        count = replay.memo.get(done, 0) + 1
        replay.memo[done] = count
        return out * 1.5 if count == 2 else out

    monkeypatch.setattr(Replay, "reduce", spoil)
    monkeypatch.setenv(BISECT, "1")
    with pytest.raises(InternalError) as caught:
        run(verify="first")
    second = last_reports()[0].plan.edits[1]
    assert f"first bad edit: {second.pass_name}/{second.policy} at {second.site}" in str(
        caught.value
    )
