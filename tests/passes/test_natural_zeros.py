"""natural_zeros on whole models: exact, where it acts, and where it says why it does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.harness import Graph, capture_calls, relative
from tokenpass.edits import Edit
from tokenpass.errors import FallbackWarning, PlanMismatchError
from tokenpass.graph.zeros import zero_regions
from tokenpass.options import read_options
from tokenpass.passes.activation_sparsity.natural_zeros import NaturalZeros
from tokenpass.passes.base import RegionContext
from tokenpass.pipeline import Planned, make_plan
from tokenpass.pipeline.regions import static_inputs
from tokenpass.report import last_reports

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}


def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"ffn_dim": 4096, "word_embed_proj_dim": 64, "dropout": 0.0}
    return OPTForCausalLM(OPTConfig(**SMALL, **sizes))


def t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 64, "d_ff": 4096, "d_kv": 16, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(**sizes, vocab_size=128, feed_forward_proj="relu"))


def nemotron() -> nn.Module:
    from transformers import NemotronConfig, NemotronForCausalLM

    config = NemotronConfig(**SMALL, intermediate_size=4096, num_key_value_heads=2, head_dim=16)
    return NemotronForCausalLM(config)


def gemma3n() -> nn.Module:
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    config = Gemma3nTextConfig(
        **SMALL,
        intermediate_size=[4096, 4096],
        num_key_value_heads=2,
        head_dim=16,
        activation_sparsity_pattern=[0.95, 0.95],
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=128,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    return Gemma3nForCausalLM(config)


def bitnet() -> nn.Module:
    """A norm between the gated product and the last projection."""
    from transformers import BitNetConfig, BitNetForCausalLM

    return BitNetForCausalLM(BitNetConfig(**SMALL, intermediate_size=4096, num_key_value_heads=2))


FAMILIES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "opt": (opt, "sparse_linear"),
    "t5": (t5, "sparse_linear"),
    "nemotron": (nemotron, "sparse_linear"),
    "bitnet": (bitnet, "sparse_linear"),
    "gemma3n": (gemma3n, "glu_neuron"),
}


def ready(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    return make().eval()


def one_token(model: nn.Module, rows: int = 1) -> dict[str, Any]:
    call = {"input_ids": torch.randint(3, 100, (rows, 1))}
    return call if "T5" in type(model).__name__ else {**call, "use_cache": False}


def graph_of(model: nn.Module, rows: int = 1) -> Graph:
    (graph,) = capture_calls(model, [one_token(model, rows)])
    return graph


def planned(graph: Graph, **options: Any) -> Planned:
    return make_plan(graph.view, graph.captured, read_options({"objective": "flops", **options}))


def zeros(plan: Planned) -> list[Edit]:
    return [edit for edit in plan.plan.edits if edit.pass_name == "natural_zeros"]


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_on_real_classes(name: str) -> None:
    """As near to float64 as dense is."""
    make, policy = FAMILIES[name]
    model = ready(make)
    graph = graph_of(model)
    plan = planned(graph)
    assert [edit.policy for edit in zeros(plan)] == [policy] * 2
    assert plan.exact and plan.module is not None and plan.packed_bytes > 0
    dense, found = graph.dense(), graph.run(plan.module)
    exact = graph_of(model.double()).dense()
    off, own = relative(found, exact), relative(dense, exact)
    assert off <= 2 * own + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
@pytest.mark.parametrize("name", ["opt", "gemma3n"])
def test_compiled(name: str, lowering: str) -> None:
    model = ready(FAMILIES[name][0])
    call = one_token(model)
    options = {"objective": "flops", "lowering": lowering, "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", options=options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        dense = model(**call)[0]
        assert relative([run(**call)[0]], [dense]) < 1e-5
        (report,) = last_reports()
        assert report.outcome == "edited" and report.packed_bytes > 0
        for parameter in model.parameters():  # never stale
            parameter.mul_(0.9)
        assert relative([run(**call)[0]], [model(**call)[0]]) < 1e-5
        for parameter in model.parameters():
            parameter.data.mul_(0.9)
        assert relative([run(**call)[0]], [model(**call)[0]]) < 1e-5


def test_many_rows_stay_dense_by_a_guard() -> None:
    model = ready(opt)
    options = {"objective": "flops", "lowering": "eager", "on_failure": "raise"}
    run = torch.compile(model, backend="tokenpass", dynamic=True, options=options)
    with torch.no_grad():
        for rows in (2, 3, 12, 2, 9):
            call = one_token(model, rows)
            assert relative([run(**call)[0]], [model(**call)[0]]) < 1e-5
    few, many = last_reports()
    assert [e.pass_name for e in few.plan.edits] == ["natural_zeros"] * 2
    assert not many.plan.edits
    assert {r.code for r in many.rejections} >= {"too_many_rows"}


def test_pack_memory_is_a_bound() -> None:
    graph = graph_of(ready(opt))
    assert len(zeros(planned(graph, pack_memory=0.3))) == 1
    none = planned(graph, pack_memory=0)
    assert not zeros(none) and none.module is None
    assert {r.code for r in none.plan.rejections} >= {"pack_memory"}


def test_with_gradients_the_product_stays_dense() -> None:
    model = ready(opt)
    run = torch.compile(model, backend="tokenpass", options={"lowering": "eager"})
    found = run(**one_token(model))[0]
    found.sum().backward()
    assert last_reports()[-1].outcome == "dense"
    assert {r.code for r in last_reports()[-1].rejections} >= {"needs_gradients"}


def test_without_a_kernel_for_the_device_the_product_stays_dense(monkeypatch) -> None:
    monkeypatch.setattr("tokenpass.pipeline.regions.TEMPLATES", ())
    plan = planned(graph_of(ready(opt)))
    assert not zeros(plan)
    assert {r.code for r in plan.plan.rejections} >= {"no_kernel_template"}


class Mixed(nn.Module):
    """Single precision with a double in the middle and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 4096), nn.Linear(4096, 8)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        h = F.relu(self.up(x)) * scale
        return self.down(h.float()) + scale[..., :8]


def test_doubles_among_floats() -> None:
    call = {"x": torch.randn(1, 8), "scale": torch.rand(1, 4096, dtype=torch.float64)}
    (graph,) = capture_calls(ready(Mixed), [call])
    plan = planned(graph)
    assert not zeros(plan) and {r.code for r in plan.plan.rejections} >= {"region_dtype"}
    call["scale"] = call["scale"].float()
    (graph,) = capture_calls(ready(Mixed), [call])
    plan = planned(graph)
    assert zeros(plan) and relative(graph.run(plan.module), graph.dense()) < 1e-5


def test_a_plan_with_zeros_can_be_pinned() -> None:
    graph = graph_of(ready(opt))
    plan = planned(graph)
    first, second = zeros(plan)
    again = graph.planned([first, second])
    assert again.plan.edits == (first, second)
    assert relative(graph.run(again.module), graph.dense()) < 1e-5
    assert graph.planned([second]).plan.edits == (second,)
    with pytest.raises(PlanMismatchError, match="nothing that could be replaced"):
        graph.planned([Edit(first.pass_name, "nowhere", first.policy, first.level)])


def test_a_value_that_is_written_to_stays_dense() -> None:
    graph = graph_of(ready(opt))
    context = RegionContext(graph.view.module, static_inputs(graph.view.module, graph.captured), {})
    kept, _ = NaturalZeros().replacements(context)
    first, second = zero_regions(graph.view.module.graph, context.static)
    for node in (first.inputs[0], first.weight, first.hidden):
        touched = RegionContext(context.module, context.static, {node: second.down})
        replacements, refused = NaturalZeros().replacements(touched)
        assert [one.site for one in replacements] == [kept[1].site]
        assert [r.code for r in refused] == ["mutated_alias"]


class InPlace(nn.Module):
    """What the projection reads, and what follows it, is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 4096), nn.Linear(4096, 8)

    def forward(self, x: Tensor) -> Any:
        h = self.up(x)
        y = self.down(F.relu(h))
        h.add_(1)
        kept = y + 1
        y[:, 2:].mul_(2)
        return y, h, kept


def test_writes_in_place_are_kept_in_order() -> None:
    (graph,) = capture_calls(ready(InPlace), [{"x": torch.randn(1, 8)}])
    plan = planned(graph)
    assert relative(graph.run(plan.module or graph.view.module), graph.dense()) < 1e-5


def test_double_precision_has_no_kernel() -> None:
    plan = planned(graph_of(ready(opt).double()))
    assert not zeros(plan)
    assert {r.code for r in plan.plan.rejections} >= {"region_dtype"}


def test_all_zeros_and_nan() -> None:
    first, last = nn.Linear(8, 4096), nn.Linear(4096, 8)
    plain = nn.Sequential(first, nn.ReLU(), last).eval()
    options = {"objective": "flops", "lowering": "eager", "on_failure": "raise"}
    run = torch.compile(plain, backend="tokenpass", options=options)
    with torch.no_grad():
        first.bias.fill_(-1e6)
        x = torch.randn(1, 8)
        assert torch.equal(run(x), last.bias[None])
        assert last_reports()[-1].outcome == "edited"
        first.bias.zero_()
        assert run(torch.full((1, 8), torch.nan)).isnan().all()


@pytest.mark.parametrize(("entries", "acts"), [(1024, False), (65536, True)])
def test_small_products_do_not_pay_for_starting_a_kernel(entries: int, acts: bool) -> None:
    model = nn.Sequential(nn.Linear(64, entries), nn.ReLU(), nn.Linear(entries, 64)).eval()
    (graph,) = capture_calls(lambda x: model(x), [{"x": torch.randn(1, 64)}])
    plan = planned(graph, objective="latency", device_profile="generic-cpu")
    assert bool(zeros(plan)) == acts
