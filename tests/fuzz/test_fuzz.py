"""A range of seeds, and the tools around them: shrinking, and bundles that show a failure again."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fuzz.check import Check, Failure, check
from tests.fuzz.random_models import build
from tests.fuzz.recipes import Recipe, consistent, recipe
from tests.fuzz.saved import save
from tests.fuzz.shrink import shrink, steps
from tokenpass.bundle import load_bundle, replay
from tokenpass.bundle.folder import GRAPH, TENSORS
from tokenpass.bundle.graph_json import find_target, from_json, graph_from_json, to_json
from tokenpass.cli import main
from tokenpass.errors import UserError
from tokenpass.graph.view import fingerprint
from tokenpass.pipeline import planned
from tokenpass.rewrite.rewriter import rewrite

SEEDS = 200
"""`make fuzz` runs 10,000."""


@pytest.mark.parametrize("start", range(0, SEEDS, 10))
def test_seeds(start: int) -> None:
    for seed in range(start, start + 10):
        found = check(recipe(seed))
        assert found is None, str(found)


@pytest.mark.parametrize(
    "made",
    [
        # padding is read off a square mask, whose queries and keys have one axis
        Recipe(layers=2, batch=2, padding="bool", pooling="all", causal="mask", edits="even"),
        Recipe(layers=2, batch=2, padding="bool", pooling="all", position="alibi"),
    ],
)
def test_what_failed_once(made: Recipe) -> None:
    run = Check(made)
    run.everything()
    assert run.lossy


# generator -------------------------------------------------------------------------------------


def test_a_recipe_is_plain_data_and_makes_the_same_model_again() -> None:
    made = recipe(5)
    again = Recipe.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    (first, call), (second, same) = build(made), build(again)
    with torch.no_grad():
        assert torch.equal(flat(first(**call)), flat(second(**same)))


def flat(out: Any) -> Tensor:
    return torch.cat([x.flatten() for x in out]) if isinstance(out, tuple) else out.flatten()


def test_recipes_are_consistent_and_vary_in_every_field() -> None:
    made = [recipe(seed) for seed in range(400)]
    assert all(consistent(one) == one for one in made)
    for item in fields(Recipe):
        assert len({getattr(one, item.name) for one in made}) > 1, item.name


@pytest.mark.parametrize("causal", ["flag", "mask"])
def test_causal_models_are_causal(causal: str) -> None:
    made = Recipe(causal=causal, pooling="all", convolution=True, layers=2)
    model, call = build(made)
    moved = {"x": torch.cat([call["x"][:, :-1], call["x"][:, -1:] + 1.0], 1)}
    with torch.no_grad():
        before, after = model(**call), model(**moved)
    assert torch.allclose(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


# shrinking -------------------------------------------------------------------------------------


def test_steps_are_other_recipes_and_end() -> None:
    made = recipe(3)
    for _ in range(100):
        found = list(steps(made))
        assert made not in found
        if not found:
            break
        made = found[0]
    else:
        pytest.fail(f"steps never end: {made}")


def test_shrinking_keeps_what_fails_and_nothing_else() -> None:
    def test(made: Recipe) -> Failure | None:
        if made.gated and made.layers >= 2:
            return Failure(made, "reference", "wrong")
        return Failure(made, "capture", "something else") if made.layers == 1 else None

    found = test(
        replace(recipe(4), gated=True, layers=4, heads=4, width=32, order="post", skip=True)
    )
    assert found is not None
    assert shrink(found, test).recipe == Recipe(gated=True, layers=2)


# a rule that is broken on purpose --------------------------------------------------------------


def without_silu(view: Any, *args: Any) -> Any:
    """A rewriter that takes every SiLU for a ReLU."""
    made = rewrite(view, *args)
    for node in made.module.graph.nodes:
        if node.target is torch.ops.aten.silu.default:
            node.target = torch.ops.aten.relu.default
    made.module.recompile()
    return made


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["tokenpass", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code if isinstance(stopped.value.code, int) else 0


def test_a_broken_rule_is_found_shrunk_and_shown_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Recipe(seed=9, gated=True, layers=2, spelling="einsum", rms=True, batch=2)
    with monkeypatch.context() as patch:
        patch.setattr(planned, "rewrite", without_silu)
        found = check(made)
        assert found is not None
        assert found.stage == "reference"
        small = shrink(found)
        assert small.stage == "reference"
        assert small.recipe == Recipe(gated=True)
        folder = save(small, tmp_path / "bundle", made.seed)
        assert command(patch, "replay", str(folder)) == 1
        assert "edited graph and reference differ" in capsys.readouterr().out
    data = json.loads((folder / GRAPH).read_text())
    assert (data["about"]["stage"], data["about"]["seed"]) == ("reference", 9)
    assert Recipe.from_dict(data["about"]["recipe"]) == small.recipe
    assert {"torch", "transformers", "tokenpass"} == set(data["versions"])
    assert command(monkeypatch, "replay", str(folder)) == 0
    assert "they agree" in capsys.readouterr().out


# bundles ---------------------------------------------------------------------------------------


BUNDLED = (
    Recipe(layers=2, batch=2, edits="budget"),
    Recipe(layers=2, spelling="einsum", pooling="first", position="rotary", edits="row"),
    Recipe(layers=2, spelling="torch", writes="row", class_token=True, second="tokens"),
    Recipe(layers=2, causal="flag", convolution=True, pooling="last", tokens_first=True),
)


@pytest.mark.parametrize("made", BUNDLED, ids=lambda made: made.spelling + made.causal)
def test_a_bundle_is_the_graph_that_was_saved(made: Recipe, tmp_path: Path) -> None:
    run = Check(made)
    run.everything()
    graph, plan = run.graph, run.plan
    assert graph is not None
    folder = save(Failure(run.recipe, "reference", "none", graph, plan), tmp_path)
    loaded = load_bundle(folder)
    module = loaded.captured.module
    assert fingerprint(module) == fingerprint(graph.view.module)
    assert [n.name for n in module.graph.nodes] == [n.name for n in graph.view.module.graph.nodes]
    for got, expected in zip(graph.run(module), graph.dense(), strict=True):
        assert torch.equal(got, expected)
    outcome = replay(loaded)
    assert plan is not None
    assert outcome.edits == (len(plan.plan.edits) if plan.module is not None else 0)
    assert outcome.agrees or outcome.barriers


def test_a_bundle_without_a_graph_says_so(tmp_path: Path) -> None:
    folder = save(Failure(Recipe(), "capture raises", "no graph"), tmp_path / "bundle")
    with pytest.raises(UserError, match="holds no graph"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "aten.add",
        "aten.add.Tensor.__call__",
        "aten.__class__.default",
        "aten.no_such_operator.default",
        "aten.add.no_such_overload",
        "aten.from_file.default",
        "prims.add.default",
        "_operator.attrgetter",
        "",
        None,
    ],
)
def test_targets_that_are_no_operators_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="bundle"):
        find_target(name)


NODE = {"op": "placeholder", "name": "x", "target": "x", "args": [], "kwargs": {}}
OUTPUT = {"op": "output", "name": "output", "target": "output", "args": [], "kwargs": {}}


@pytest.mark.parametrize(
    "lines",
    [
        [NODE | {"op": "call_module"}, OUTPUT],
        [NODE | {"op": "call_method", "target": "numpy"}, OUTPUT],
        [NODE | {"op": "get_attr", "target": "__class__"}, OUTPUT],
        [NODE | {"name": "x y"}, OUTPUT],
        [NODE | {"target": "x; import os"}, OUTPUT],
        [NODE | {"args": [{"node": "y"}]}, OUTPUT],
        [NODE | {"args": [{"dtype": "torch.load"}]}, OUTPUT],
        [NODE | {"args": [{"what": 1}]}, OUTPUT],
        [NODE, NODE, OUTPUT],
        [{"op": "placeholder"}, OUTPUT],
        [NODE],
    ],
)
def test_graphs_that_were_never_saved_are_refused(lines: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="bundle"):
        graph_from_json(lines, {})


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        "tanh",
        0.1,
        float("inf"),
        [1, (2.5, None)],
        slice(None, 2),
        torch.float64,
        torch.strided,
        torch.contiguous_format,
        torch.device("cpu"),
    ],
)
def test_arguments_come_back(value: Any) -> None:
    assert from_json(json.loads(json.dumps(to_json(value))), {}) == value


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_bundle(tmp_path / "nothing")
    run = Check(Recipe())
    run.everything()
    folder = save(Failure(run.recipe, "reference", "none", run.graph, run.plan), tmp_path)
    torch.save({"inputs": Recipe(), "constants": {}}, folder / TENSORS)
    with pytest.raises(UserError, match="as tensors alone"):
        load_bundle(folder)
    (folder / GRAPH).write_text("[]")
    with pytest.raises(UserError, match="format"):
        load_bundle(folder)
