"""Lossy sparsity on real classes and odd graphs: what a plan gives is what its reference says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenpass
from tests.models.harness import Graph, capture_calls, relative
from tokenpass.edits import Edit
from tokenpass.options import read_options
from tokenpass.passes.activation_sparsity.policies import POLICIES
from tokenpass.pipeline import Planned, make_plan
from tokenpass.statistics import Calibration

NAMES = [policy.name for policy in POLICIES]
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def classes() -> dict[str, Callable[[], nn.Module]]:
    import transformers as hf

    gated = {"intermediate_size": 160, "num_key_value_heads": 2}
    opt = {"ffn_dim": 160, "word_embed_proj_dim": 64, "dropout": 0.0}
    return {
        "swiglu": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **gated)),
        "tied": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**SMALL, **gated, tie_word_embeddings=True)
        ),
        "fused": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SMALL, **gated)),
        "gelu": lambda: hf.OPTForCausalLM(hf.OPTConfig(**SMALL, **opt, activation_function="gelu")),
        "relu": lambda: hf.OPTForCausalLM(hf.OPTConfig(**SMALL, **opt)),
        "relu_squared": lambda: hf.ArceeForCausalLM(hf.ArceeConfig(**SMALL, **gated)),
        "parallel": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL, intermediate_size=160)),
        "parallel_gated": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SMALL, **gated)),
    }


FAMILIES = (
    "swiglu",
    "tied",
    "fused",
    "gelu",
    "relu",
    "relu_squared",
    "parallel",
    "parallel_gated",
)


def calibrated(model: nn.Module, batch: dict[str, Any]) -> Calibration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenpass.calibrate(model, [batch])


def token(rows: int = 1) -> dict[str, Any]:
    ids = torch.randint(3, 60, (rows, 1), generator=torch.Generator().manual_seed(rows))
    return {"input_ids": ids, "use_cache": False}


@cache
def family(name: str) -> tuple[nn.Module, Calibration, Graph]:
    torch.manual_seed(5)
    model = classes()[name]().eval()
    ids = torch.randint(3, 60, (2, 8))
    calibration = calibrated(model, {"input_ids": ids, "use_cache": False})
    (graph,) = capture_calls(model, [token()])
    return model, calibration, graph


def planned(graph: Graph, calibration: Calibration | None, **options: Any) -> Planned:
    given: dict[str, Any] = {"objective": "flops", "pack_memory": 3.0, **options}
    given |= {} if calibration is None else {"calibration": calibration}
    return make_plan(graph.view, graph.captured, read_options(given))


def fixed(graph: Graph, calibration: Calibration | None, policy: str, **options: Any) -> Planned:
    """40 % left out by a policy, wherever it may act."""
    said = {"policy": policy, "sparsity": 0.4, **options.pop("scope", {})}
    return planned(graph, calibration, passes=[{"activation_sparsity": said}], **options)


def lossy(plan: Planned) -> list[Edit]:
    return [edit for edit in plan.plan.edits if edit.pass_name == "activation_sparsity"]


def sites(plan: Planned) -> list[str]:
    return [edit.site.removesuffix(":projection") for edit in lossy(plan)]


def assert_agrees(graph: Graph, plan: Planned, tolerance: float = 1e-5) -> None:
    assert plan.module is not None and not plan.exact
    assert relative(graph.run(plan.module), graph.reference(plan)) < tolerance


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_plan_is_its_reference(name: str, policy: str) -> None:
    _, calibration, graph = family(name)
    plan = fixed(graph, calibration, policy)
    assert_agrees(graph, plan)
    everywhere = next(one for one in POLICIES if one.name == policy).place == "inputs"
    found = sites(plan)
    assert len(found) == len(set(found)) and (len(found) > 4 if everywhere else len(found) == 1)
    if everywhere:  # something was lost, and the reference lost as much
        assert relative(graph.run(plan.module), graph.dense()) > 1e-3


@pytest.mark.parametrize("policy", ["wina", "cats", "top_k"])
@pytest.mark.parametrize("rows", [2, 3])
def test_rows_share_what_is_read(rows: int, policy: str) -> None:
    model, calibration, _ = family("swiglu")
    (graph,) = capture_calls(model, [token(rows)])
    assert_agrees(graph, fixed(graph, calibration, policy))


@pytest.mark.parametrize("policy", ["teal", "top_k", "cats"])
def test_any_number_of_rows_up_to_a_guard(policy: str) -> None:
    model, calibration, _ = family("swiglu")
    (graph,) = capture_calls(model, [token(2)], dynamic=True)
    assert_agrees(graph, fixed(graph, calibration, policy))
    (graph,) = capture_calls(model, [token(30)])
    plan = fixed(graph, calibration, policy)
    assert not lossy(plan)
    assert {r.code for r in plan.plan.rejections} >= {"too_many_rows"}


@pytest.mark.parametrize("policy", ["wina", "chess", "top_k"])
def test_half_precision(policy: str) -> None:
    torch.manual_seed(5)
    model = classes()["swiglu"]().bfloat16().eval()
    calibration = calibrated(model, {"input_ids": torch.randint(3, 60, (2, 8))})
    (graph,) = capture_calls(model, [token()])
    assert_agrees(graph, fixed(graph, calibration, policy), 3e-2)


@pytest.mark.parametrize("policy", ["teal", "top_k", "cats"])
@pytest.mark.parametrize("rows", [1, 2])
def test_behind_dead_tokens(policy: str, rows: int) -> None:
    """Only the last token is left; others have no say in what its projections read."""
    model, calibration, _ = family("swiglu")
    ids = torch.randint(3, 60, (rows, 12))
    call = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    (graph,) = capture_calls(model, [call])
    plan = fixed(graph, calibration, policy)
    assert plan.plan.edits[0].pass_name == "dead_tokens"
    if policy == "top_k" and rows == 2:
        assert {r.code for r in plan.plan.rejections} >= {"unalignable"}
        assert not [site for site in sites(plan) if "layers" in site]
    assert relative(graph.run(plan.module or graph.view.module), graph.reference(plan)) < 1e-5


# graphs in which regions meet ------------------------------------------------------------------


class Net(nn.Module):
    """Some projections of 64 entries."""

    def __init__(self, act: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.act = act
        self.a, self.b, self.c, self.d = (nn.Linear(64, 64) for _ in range(4))


class Deep(Net):
    """An activation is behind one projection and before the next."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.b(self.act(self.a(x)))))


class GateBehindActivation(Net):
    """Gate and up are neurons' projections themselves, and the last one's list computes up."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.a(x))
        return self.d(F.silu(self.b(x)) * self.c(x))


class Branches(Net):
    """What joins them depends on the later one, though not in its last step."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a(x), self.b(x)
        return first + second * torch.softmax(x, -1) + x


class Twice(Net):
    """One module, called twice; no bias in between, and a value that others read too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(torch.tanh(self.a(x)))
        return self.b(y) + y, y


class Zeros(Net):
    """A gate with zeros of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.b(x)) * self.c(x))


class FusedZeros(Net):
    """Gate and up are parts of one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(64, 128)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.b(x).chunk(2, -1)
        return self.d(F.relu(gate) * up)


def odd(model: nn.Module) -> tuple[Graph, Calibration]:
    torch.manual_seed(0)
    model = model.eval()
    calibration = calibrated(model, {"x": torch.randn(32, 64)})
    (graph,) = capture_calls(lambda **call: model(**call), [{"x": torch.randn(1, 64)}])
    return graph, calibration


NETS = (Deep, GateBehindActivation, Branches, Twice, Zeros, FusedZeros)


@pytest.mark.parametrize("policy", ["teal", "cats", "top_k"])
@pytest.mark.parametrize("net", NETS)
def test_no_value_is_computed_by_two(net: type[nn.Module], policy: str) -> None:
    graph, calibration = odd(net())
    plan = fixed(graph, calibration, policy)
    named = [edit.site for edit in plan.plan.edits]
    assert len(named) == len(set(named))
    if lossy(plan):
        assert_agrees(graph, plan)
    assert lossy(plan) or (net is Branches and policy == "cats")


@pytest.mark.parametrize("net", [Zeros, FusedZeros])
def test_exact_neurons_whose_up_projection_is_lossy(net: type[nn.Module]) -> None:
    """The exact list would compute `up` itself, whole: it lists what `up` gave instead."""
    graph, calibration = odd(net())
    plan = fixed(graph, calibration, "teal", scope={"exclude": ["d"]})
    exact = [edit for edit in plan.plan.edits if edit not in lossy(plan)]
    assert "d" not in sites(plan) and lossy(plan)
    assert [(e.site, e.policy) for e in exact] == [("d:projection", "sparse_linear")]
    assert_agrees(graph, plan)


def test_natural_zeros_beside_lossy_places() -> None:
    """A projection has one or the other."""
    graph, calibration = odd(Deep(F.relu))
    plan = fixed(graph, calibration, "teal", scope={"include": ["a", "b"]})
    assert sites(plan) == ["a", "b"]
    assert [(e.pass_name, e.site) for e in plan.plan.edits if e not in lossy(plan)] == [
        ("natural_zeros", "c:projection")
    ]
    assert_agrees(graph, plan)


def test_an_mlp_that_is_always_off() -> None:
    """All its entries are zero: there is nothing to leave out, at any level."""
    model = Deep(lambda x: F.relu(x - 1e6))
    graph, calibration = odd(model)
    plan = planned(graph, calibration, budget=0.3, passes=["activation_sparsity"])
    assert sites(plan) in ([], ["a"])


def test_writes_in_place_are_kept_in_order() -> None:
    """What a projection reads, and what follows it, is written to later."""

    class Writes(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.a(x)
            z = self.b(y)
            kept = z + 1
            y.add_(1)
            z[:, 2:].mul_(2)
            return z, y, kept

    graph, calibration = odd(Writes())
    plan = fixed(graph, calibration, "teal")
    assert len(lossy(plan)) + [r.code for r in plan.plan.rejections].count("mutated_alias") == 2
    found = graph.run(plan.module or graph.view.module)
    assert relative(found, graph.reference(plan)) < 1e-5
