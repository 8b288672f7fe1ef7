"""What every test shares: shape types checked at run time, and a Dynamo that remembers nothing.

Threads: the Makefile runs the suite with OMP_NUM_THREADS=1 and two workers, one thread each. A test
that compares times or relies on a thread count sets its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

# Before anything imports them: the annotations of the policies' functions are checked on each call.
CHECKED = ("tokenpass.passes",)
install_import_hook(CHECKED, "beartype.beartype")


# The same examples each time, and no time limit on shared machines;
# HYPOTHESIS_PROFILE=explore tries new ones.
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree under test."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    """Compiled graphs and guards of one test never reach the next."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
