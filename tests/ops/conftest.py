"""Gives the contract suite each operator's oracle, `oracles/<name>.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tokenpass.lower.kernels import installed_kernels


@pytest.fixture(autouse=True, scope="session")
def _kernels():
    """Calls run the kernels, as a user's do, whether or not another test installed them."""
    return installed_kernels()


@pytest.fixture
def oracle():
    """Loads an oracle by its operator's name, from its file."""

    def load(name):
        path = Path(__file__).parent / "oracles" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"oracle_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
