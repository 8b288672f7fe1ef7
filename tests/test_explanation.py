"""explain: every graph, nothing compiled, nothing left behind."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

import tokenpass
from tokenpass.backend import tokenpass as backend
from tokenpass.errors import OptionError, PlanMismatchError, UserError
from tokenpass.report import last_reports

WIDTH, HEADS, TOKENS = 32, 4, 64
FLOPS = {"budget": 0.5, "objective": "flops"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        heads = self.qkv(x).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads.unbind(0))
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(x)


class Encoder(nn.Module):
    def __init__(self, breaks: bool = False, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.breaks = breaks

    def forward(self, x: Tensor, options: Any = None) -> Tensor:
        x = self.blocks[0](x)
        if self.breaks:
            torch._dynamo.graph_break()
        for block in self.blocks[1:]:
            x = block(x)
        return x[:, 0]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def example() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH)


def compiled_entries() -> int:
    return sum(
        len(_debug_get_cache_entry_list(f.__code__)) for f in (Encoder.forward, Block.forward)
    )


def test_tokens_costs_edits_and_reasons() -> None:
    told = tokenpass.explain(Encoder().eval(), example(), options=FLOPS)
    (graph,) = told.graphs
    assert graph.outcome == "edited"
    assert graph.plan.share < 0.6  # what three tiny layers can reach
    assert [row.name for row in graph.layers] == ["blocks.0", "blocks.1", "blocks.2"]
    first, _, last = graph.layers
    assert first.tokens_in == str(TOKENS)
    assert last.tokens_out == "1"
    assert graph.layers[1].planned_cost < graph.layers[1].dense_cost
    assert {edit.pass_name for edit in graph.plan.edits} == {"dead_tokens", "token_merge"}
    assert any(r.code == "nothing_behind" and "test_explanation.py" in r.source
               for r in graph.rejections)  # fmt: skip
    shown = str(told)
    for part in (
        "budget 0.5",
        "tokens in",
        "blocks.1",
        "edit: token_merge/head_cosine",
        "left alone:",
    ):
        assert part in shown
    assert repr(told) == shown


def test_layers_and_the_rest_sum_to_the_whole() -> None:
    (graph,) = tokenpass.explain(Encoder().eval(), example(), options=FLOPS).graphs
    dense = sum(row.dense_cost for row in graph.layers) + graph.outside_dense
    planned = sum(row.planned_cost for row in graph.layers) + graph.outside_planned
    assert dense == pytest.approx(graph.plan.dense_cost)
    assert planned == pytest.approx(graph.plan.planned_cost)


def test_it_says_what_compiling_does() -> None:
    model, x = Encoder().eval(), example()
    (told,) = tokenpass.explain(model, x, options=FLOPS).graphs
    tokenpass.reset()
    torch.compile(model, backend=backend, options={**FLOPS, "lowering": "eager"})(x)
    (done,) = last_reports()
    assert done.plan == told.plan
    assert done.layers == told.layers


def test_all_graphs_behind_graph_breaks(tmp_path: Path) -> None:
    told = tokenpass.explain(Encoder(breaks=True).eval(), example(), options=FLOPS)
    assert len(told.graphs) == 2
    assert "graph 1 of 2" in str(told)
    with pytest.raises(UserError, match=r"expected one graph, got 2.*graph_breaks"):
        told.save_plan(tmp_path / "plan.yaml")


def test_nothing_stays_compiled() -> None:
    model, before = Encoder().eval(), compiled_entries()
    tokenpass.reset()
    tokenpass.explain(model, example(), options=FLOPS)
    tokenpass.explain(model, torch.randn(2, 2 * TOKENS, WIDTH), options=FLOPS)
    assert compiled_entries() == before
    assert not last_reports()
    assert "_compiled_call_impl" not in model.__dict__ or model._compiled_call_impl is None
    seen: list[Any] = []

    def watch(module: Any, inputs: Any) -> Any:
        seen.append(inputs)
        return module.forward

    # sizes seen by explain would have made the tokens dynamic here
    torch.compile(model, backend=watch)(torch.randn(2, 3 * TOKENS, WIDTH))
    assert not any(isinstance(x, torch.SymInt) for x in seen[0])


def test_what_the_user_compiled_stays_compiled() -> None:
    model, x, count = Encoder().eval(), example(), 0

    def counting(module: Any, inputs: Any) -> Any:
        nonlocal count
        count += 1
        return module.forward

    compiled = torch.compile(model, backend=counting)
    compiled(x)
    assert len(tokenpass.explain(compiled, x, options=FLOPS).graphs) == 1
    compiled(x)
    assert count == 1


def test_a_model_compiled_in_place_is_explained_and_left_so() -> None:
    model, x = Encoder().eval(), example()
    model.compile(backend=backend, options={**FLOPS, "lowering": "eager"})
    was = model._compiled_call_impl
    assert len(tokenpass.explain(model, x, options=FLOPS).graphs) == 1
    assert model._compiled_call_impl is was


def test_the_model_is_not_kept_alive() -> None:
    model = Encoder().eval()
    told = tokenpass.explain(model, example(), options=FLOPS)
    gone = weakref.ref(model.blocks[0].qkv.weight)
    del model
    import gc

    gc.collect()
    assert told.graphs and gone() is None


def test_a_saved_plan_runs_again(tmp_path: Path) -> None:
    model, x, path = Encoder().eval(), example(), tmp_path / "plan.yaml"
    told = tokenpass.explain(model, x, options=FLOPS)
    told.save_plan(path)
    (again,) = tokenpass.explain(model, x, options={"config": path}).graphs
    assert again.plan.edits == told.graphs[0].plan.edits
    assert again.plan.planned_cost == told.graphs[0].plan.planned_cost


def test_dynamic_lengths_are_told_as_tokens(tmp_path: Path) -> None:
    model, x, path = Encoder().eval(), example(), tmp_path / "plan.yaml"
    torch._dynamo.mark_dynamic(x, 1)
    told = tokenpass.explain(model, x, options=FLOPS)
    assert told.graphs[0].layers[0].tokens_in == "tokens"
    assert "tokens" in told.graphs[0].plan.edits[0].level
    told.save_plan(path)
    again = tokenpass.explain(model, x, options={"config": path})
    assert again.graphs[0].goal == f"plan of {path}"
    assert again.graphs[0].plan.edits == told.graphs[0].plan.edits


def test_a_plan_of_another_model_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    tokenpass.explain(Encoder().eval(), example(), options=FLOPS).save_plan(path)
    with pytest.raises(PlanMismatchError, match=r"plan\.yaml: the plan was made for graph"):
        tokenpass.explain(Encoder(depth=4).eval(), example(), options={"config": path})


def test_a_model_without_tokens_is_told_dense() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    told = tokenpass.explain(model, torch.randn(4, 8), options={"budget": 0.5})
    assert told.graphs[0].outcome == "dense"
    assert told.graphs[0].rejections[0].code == "no_token_stream"
    assert "no_token_stream" in str(told)


def test_a_call_without_graphs(tmp_path: Path) -> None:
    told = tokenpass.explain(lambda: 3)
    assert told.graphs == ()
    assert "no graph" in str(told)
    with pytest.raises(UserError, match="expected one graph, got 0"):
        told.save_plan(tmp_path / "plan.yaml")


def test_a_failure_is_told_or_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such luck\nat all")

    monkeypatch.setattr("tokenpass.backend.make_plan", broken)
    told = tokenpass.explain(Encoder().eval(), example())
    assert told.graphs[0].outcome == "fallback"
    assert "RuntimeError: no such luck" in str(told)
    with pytest.raises(RuntimeError, match="no such luck"):
        tokenpass.explain(Encoder().eval(), example(), options={"on_failure": "raise"})


def test_wrong_options_are_told_before_anything_runs() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError

    with pytest.raises(OptionError, match=r"budget.*did you mean|unknown option"):
        tokenpass.explain(never, example(), options={"bugdet": 0.5})


def test_options_of_a_model_that_takes_options() -> None:
    model = Encoder().eval()
    with pytest.raises(OptionError, match="give the model's own by position"):
        tokenpass.explain(model, example(), options={"temperature": 1})
    told = tokenpass.explain(model, example(), {"temperature": 1}, options=FLOPS)
    bound = tokenpass.explain(
        functools.partial(model, options={"temperature": 1}), example(), options=FLOPS
    )
    assert len(told.graphs) == len(bound.graphs) == 1


def test_what_the_model_raises_is_raised() -> None:
    with pytest.raises(Exception, match="reduction dim"):
        tokenpass.explain(Encoder().eval(), torch.randn(2, TOKENS, WIDTH + 1))
