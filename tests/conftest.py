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


FORGETS = {
    "torch._dynamo": lambda module: module.reset(),
    "tokenpass.report": lambda module: module.LOG.clear(),
    "tokenpass.codegen.packed": lambda module: module.PACKED.clear(),
    "tokenpass.lower.carried": lambda module: module.CACHES.known.clear(),
}
"""What lives between calls, by its module."""


def forget(name: str) -> None:
    """Empty what a module keeps, if it is loaded."""
    if name in sys.modules:
        FORGETS[name](sys.modules[name])


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Compiled graphs, reports, packed weights and caches of one test never reach the next.

    Reports of wider fixtures do not reach it either.
    """
    forget("tokenpass.report")
    yield
    for name in FORGETS:
        forget(name)
