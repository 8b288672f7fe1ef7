"""A bundle on disk: `bundle.json`, `plan.yaml`, and `tensors.pt` (loaded as weights only)."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule

from tokenpass import __version__
from tokenpass.bundle.graph_json import FakeValues, graph_from_json, graph_to_json
from tokenpass.capture.dynamo import Captured
from tokenpass.errors import UserError
from tokenpass.tracing import placeholders

FORMAT = 1
GRAPH, PLAN, TENSORS = "bundle.json", "plan.yaml", "tensors.pt"


@dataclass(frozen=True, eq=False)
class Bundle:
    """One graph with its inputs and what was asked of it.

    `plan`: text of a plan file, empty where planning itself failed; then `options` are planned
    anew. `about`: what else is told (recipe, seed, stage, message), as JSON has it.
    """

    captured: Captured
    inputs: tuple[Tensor, ...]
    plan: str
    options: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)


def save_bundle(bundle: Bundle, folder: str | os.PathLike[str]) -> Path:
    """Write a bundle; raises `UserError` for graphs with dynamic sizes or unknown operators."""
    module = bundle.captured.module
    if not all(isinstance(value, Tensor) for value in bundle.inputs):
        raise UserError("a bundle holds graphs without dynamic sizes: compile with dynamic=False")
    data = {
        "format": FORMAT,
        "versions": versions(),
        "about": dict(bundle.about),
        "options": dict(bundle.options),
        "data_inputs": [node.name for node in bundle.captured.data_inputs],
        "graph": graph_to_json(module),
    }
    names = [node.name for node in placeholders(module)]
    tensors = {
        "inputs": dict(zip(names, map(plain, bundle.inputs), strict=True)),
        "constants": {name: plain(value) for name, value in constants_of(module).items()},
    }
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / GRAPH).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (place / PLAN).write_text(bundle.plan, encoding="utf-8")
    torch.save(tensors, place / TENSORS)
    return place


def versions() -> dict[str, str | None]:
    """What a graph depends on."""

    def found(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "tokenpass": __version__,
        "torch": torch.__version__,
        "transformers": found("transformers"),
    }


def plain(value: Tensor) -> Tensor:
    """A tensor with nothing of the model that it came from."""
    return value.detach().clone()


def constants_of(module: GraphModule) -> dict[str, Tensor]:
    """The tensors that the graph has as attributes."""
    names = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    return {name: getattr(module, name) for name in sorted(names)}


def load_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read a bundle; raises `UserError` for whatever `save_bundle` does not write.

    No code of the bundle is run: the graph is JSON, the tensors are read as weights only.
    """
    place = Path(folder)
    data, tensors, plan = read(place)
    if data.get("graph") is None:
        raise UserError(f"{place}: the bundle holds no graph: {data.get('about')}")
    try:
        constants, inputs = tensors["constants"], tensors["inputs"]
        module = graph_from_json(data["graph"], constants)
        given = tuple(inputs[node.name] for node in placeholders(module))
        data_names, about, options = data["data_inputs"], data["about"], data["options"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{place}: the bundle misses a part: {error!r}") from error
    if not all(isinstance(value, Tensor) for value in given):
        raise UserError(f"{place / TENSORS}: expected tensors alone")
    return Bundle(captured(module, given, data_names), given, plan, options, about)


def read(place: Path) -> tuple[dict[str, Any], Any, str]:
    """The folder's parts."""
    try:
        data = json.loads((place / GRAPH).read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UserError(f"{place / GRAPH}: expected a bundle of format {FORMAT}")
        if data.get("graph") is None:
            return data, {}, ""
        tensors = torch.load(place / TENSORS, weights_only=True)
        return data, tensors, (place / PLAN).read_text(encoding="utf-8")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: the bundle cannot be read: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[:1]
        raise UserError(f"{place / TENSORS}: cannot be read as tensors alone: {first}") from error


def captured(module: GraphModule, inputs: Sequence[Tensor], data_names: Sequence[str]) -> Captured:
    """What capture would have given, with values by running the graph over fake inputs."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = tuple(mode.from_tensor(value, static_shapes=True) for value in inputs)
    for name, value in constants_of(module).items():
        setattr(module, name, value)
    try:
        with mode, torch.no_grad():
            FakeValues(module, garbage_collect_values=False).run(*fakes)
    except Exception as error:
        raise UserError(f"bundle: the graph does not run: {error}") from error
    nodes = placeholders(module)
    data = tuple(node for node in nodes if node.name in data_names)
    examples = dict(zip(nodes, inputs, strict=True))
    return Captured(module, fakes, mode, data, examples, training=False, train_mode=None)
