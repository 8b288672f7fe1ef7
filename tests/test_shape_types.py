"""Shape types on policies are checked while tests run: a check that can fail."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

import tokenpass.passes

PROBE = '''
"""Written as policies are: postponed annotations, shapes from tokenpass.shapes."""

from __future__ import annotations

from torch import Tensor

from tokenpass.shapes import Float


def score(keys: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens"]:
    return keys.norm(dim=-1)


def wrong_axis(keys: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens"]:
    return keys.norm(dim=1)
'''


def test_policies_are_under_the_hook() -> None:
    loader = tokenpass.passes.__spec__.loader
    assert type(loader).__module__.startswith("jaxtyping")


def test_a_wrong_axis_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shape_probe.py").write_text(PROBE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with install_import_hook("shape_probe", "beartype.beartype"):
        probe = importlib.import_module("shape_probe")
    keys = torch.zeros(2, 5, 3)
    assert probe.score(keys).shape == (2, 5)
    with pytest.raises(TypeCheckError):
        probe.wrong_axis(keys)
    with pytest.raises(TypeCheckError):
        probe.score(keys[0])
