"""Names that a user's model may have: they come through plans and reports, and into no source.

All of these names get through Dynamo, apart from those in `REFUSED`.
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenpass
from tests.models.zoo.common import ready
from tests.models.zoo.hand_written import Block
from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of
from tokenpass.codegen.cache import source_of
from tokenpass.ops import OPERATORS
from tokenpass.report import LOG, GraphReport, details, last_reports, text
from tokenpass.tracing import clean_path

NAMES = {
    "quote": 'quo"te',
    "apostrophe": "apo'strophe",
    "both quotes": "'\"",
    "newline": "new\nline: [x]\n- y",
    "braces": "{brace} {0} {",
    "backslash": "back\\slash\\",
    "dollar": "$ ${x} $(y)",
    "percent": "%s %(x)d",
    "unicode": "ünïcödé_层",
    "direction": "\u202eright to left\u2028",
    "escape": "\x1b[31mred",
    "long": "long" * 300,
    "colon": "a:b: c",
    "comment": "x #c",
    "index": "[0]",
    "path": "'] + L['x",
    "word": "class",
    "number": "0",
    "pattern": "*?[!a]",
    "yaml": "- &a !!python/object:x {",
    "markup": "[bold]x[/bold]",
}
QUICK = {"both quotes", "newline", "braces", "dollar", "unicode", "long"}
KNOWN_WORDS = re.compile(r"[a-z0-9_.,() \-]*")
REFUSED = {
    "dot": ("a.b", "torch itself: a module's name may have no dot"),
    "empty": ("", "torch itself: a module's name may not be empty"),
}
OPTIONS = {"lowering": "eager", "objective": "flops", "budget": 0.8, "on_failure": "raise"}


class Named(nn.Module):
    """A block, a buffer and a class of one name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.add_module(name, types.new_class(name, (Block,))(16, 2))
        self.register_buffer(f"{name} buffer", torch.ones(16))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * getattr(self, f"{self.name} buffer")
        return getattr(self, self.name)(x).mean(1)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 24, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def compiled(model: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, GraphReport]:
    torch._dynamo.reset()
    LOG.clear()
    with torch.no_grad():
        found = torch.compile(model, backend="tokenpass", options=options)(x)
    (report,) = last_reports()
    return found, report


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=kind, marks=() if kind in QUICK else pytest.mark.slow)
        for kind, name in NAMES.items()
    ],
)
def test_names_come_through(name: str, x: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ready(Named(name), 1.5)
    found, report = compiled(model, x, **OPTIONS)
    (edit,) = report.plan.edits
    assert edit.site.endswith(":after_attention") and edit.site.isprintable()

    # one line for each thing that is told
    shown = text(report).splitlines()
    assert [line for line in shown if line.startswith("edit: ")] == [
        f"edit: {edit.pass_name}/{edit.policy} at {edit.site} keeps {edit.level}"
    ]
    assert "\x1b" not in details(report)

    # the plan file gives the same plan
    path = tmp_path / "plan.yaml"
    path.write_text(report.plan_yaml, encoding="utf-8")
    again, pinned = compiled(model, x, config=path, lowering="eager", on_failure="raise")
    assert pinned.plan.edits == report.plan.edits
    assert torch.equal(found, again)


@pytest.mark.parametrize("name", ["new\nline: [x]", "{brace} ${x}"])
def test_explain_tells_of_odd_names(name: str, x: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        told = tokenpass.explain(ready(Named(name), 1.5), x, options=OPTIONS)
    (edit,) = told.graphs[0].plan.edits
    assert f" at {edit.site} keeps " in str(told)
    told.save_plan(tmp_path / "plan.yaml")
    assert edit.site.split(":")[0] in (tmp_path / "plan.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_names_that_no_model_has(name: str, reason: str) -> None:
    with pytest.raises(KeyError, match="module name can"):
        Named(name)


@pytest.mark.parametrize(
    ("dynamo", "shown"),
    [
        ("L['self'].encoder.layer[3].attention", "encoder.layer.3.attention"),
        ("getattr(L['self'], 'a b')", "a b"),
        ("getattr(L['self'].deep[1], 'a b').qkv", "deep.1.a b.qkv"),
        ("getattr(getattr(L['self'], 'a b'), \"it's\")", "a b.it's"),
        ("getattr(L['self'], 'new\\nline')", "new\\nline"),
        ("getattr(L['self'], 'a\\'b')", "a\\'b"),
    ],
)
def test_paths_as_a_user_writes_them(dynamo: str, shown: str) -> None:
    assert clean_path(dynamo) == shown


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_sources_are_made_of_numbers_and_known_words(template: Any) -> None:
    """Nothing that a kernel is made from can hold a user's text: operators are given no names."""
    operator = next(one for one in OPERATORS if one.name == template.operator)
    sizes = dict.fromkeys(operator.sizes, 8)
    arguments = operator.example(torch.Generator().manual_seed(0), torch.float32, **sizes)
    parameters = template.parameters(problem_of(template.operator, arguments))
    for name, value in parameters.items():
        assert name.isidentifier()
        assert isinstance(value, int) or KNOWN_WORDS.fullmatch(value)
    assert source_of(template, parameters).isascii()
