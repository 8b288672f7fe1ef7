"""Each form as it was, and valid where its readers have a schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import xmlschema

from tests.check.golden import FOLDER, FORMS, SCHEMA
from tests.check.samples import baseline

JUNIT = Path(__file__).parent / "junit.xsd"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_are_as_they_were(path: Path) -> None:
    assert FORMS[path]() == path.read_text(encoding="utf-8"), "python -m tests.check.golden"


def test_junit_is_valid() -> None:
    schema = xmlschema.XMLSchema(JUNIT)
    text = (FOLDER / "junit.xml").read_text(encoding="utf-8")
    schema.validate(text)
    for broken in (text.replace("testcase", "case"), text.replace(' errors="1"', "")):
        assert broken != text and not schema.is_valid(broken)


def test_baselines_are_valid(repository: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    check.validate(baseline().model_dump())
    own = json.loads((repository / "tokenpass.baseline.json").read_text())
    check.validate(own)
    own["cases"]["vit_b_half"]["facts"]["graph_breaks"] = "none"
    assert not check.is_valid(own)
