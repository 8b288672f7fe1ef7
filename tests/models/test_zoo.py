"""Every family: exact at budget 1.0, and at 0.5 what its plan says, or a reason."""

from __future__ import annotations

import pytest

from tests.models.examine import examine
from tests.models.zoo import DENSE, FAMILIES, SMALL_SET, TOLERANCE


def check(name: str) -> None:
    row = examine(name, FAMILIES[name])
    tolerance = TOLERANCE.get(name, 1e-9)
    assert row.exact_error < tolerance
    if name in DENSE:
        assert not row.edited and DENSE[name] in row.rejections
        return
    assert row.edited, row.rejections
    assert row.reference_error is not None and row.reference_error < tolerance


@pytest.mark.parametrize("name", SMALL_SET)
def test_family(name: str) -> None:
    check(name)


@pytest.mark.zoo
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in SMALL_SET])
def test_family_of_the_zoo(name: str) -> None:
    check(name)


def test_lists_name_families() -> None:
    assert {*DENSE, *TOLERANCE, *SMALL_SET} <= set(FAMILIES)
