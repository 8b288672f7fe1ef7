"""A template that needs no compiler: its generated `launch` is plain torch, or raises."""

from __future__ import annotations

import pytest

from tokenpass.codegen.base import KernelTemplate
from tokenpass.codegen.cache import load
from tokenpass.edits import Rejection


class PlainTemplate(KernelTemplate):
    name = "plain"
    operator = "bipartite_match"
    target = "triton"
    device = "cpu"

    def __init__(self, body, rejects=False):
        self.body = body
        self.rejects = rejects

    def supports(self, problem):
        return Rejection("kernel_shape", self.name, "it is a stub") if self.rejects else None

    def parameters(self, problem):
        return {"rank": len(problem.arguments[0].shape)}

    def render(self, parameters):
        return f"import torch\n\ndef launch(keys, sizes, protected, heads=1):\n    {self.body}\n"

    def launcher(self, parameters):
        return load(self, parameters).launch


@pytest.fixture
def plain_template():
    return PlainTemplate


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENPASS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
