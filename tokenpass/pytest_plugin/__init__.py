"""For pytest: the fixture `tokenpass_check`, which checks one model in one test.

    def test_encoder(tokenpass_check):
        tokenpass_check(model, (ids,), options={"budget": 0.5}, max_error=0.2)

Every run of pytest imports this module where tokenpass is installed, so what a check needs is
loaded when the fixture is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tokenpass.pytest_plugin.in_test import Check


def pytest_addoption(parser: pytest.Parser) -> None:
    """What can be asked of all checks."""
    group = parser.getgroup("tokenpass", "checks of tokenpass")
    group.addoption(
        "--tokenpass-update", action="store_true", help="write what is so now as the baseline"
    )
    group.addoption(
        "--tokenpass-timing",
        action="store_true",
        help="gate speed too, in interleaved pairs beside dense torch.compile",
    )
    group.addoption(
        "--tokenpass-time-limit",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="of the pairs of one check (default: 60)",
    )
    parser.addini(
        "tokenpass_device_profile",
        "the shipped device profile, or the file of one, that plans are made with",
        default="generic-cpu",
    )


@pytest.fixture
def tokenpass_check(request: pytest.FixtureRequest) -> Check:
    """A function that checks a model beside its baseline: see `in_test.Check`."""
    from tokenpass.pytest_plugin.in_test import Check  # noqa: PLC0415 - torch, for those who ask

    return Check(request.node, request.config)
