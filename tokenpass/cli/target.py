"""`MODULE:NAME` or `FILE.py:NAME` becomes a model and the inputs of one call."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tokenpass.errors import UserError, nearest

SHAPE = "(model, args) or (model, args, kwargs)"


@dataclass(frozen=True)
class Target:
    """A model and one call of it."""

    model: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def load_target(text: str) -> Target:
    """Import the user's code, call it if it can be called, and read what it gives.

    Raises `UserError` that says what was expected; what the user's code raises is told with its
    place.
    """
    return as_target(load_value(text), text)


def load_model(text: str) -> Any:
    """A model, also from a function that makes one; of a tuple with inputs the model alone."""
    value = load_value(text)
    if isinstance(value, tuple | list) and value:
        value = value[0]
    if not callable(value):
        raise UserError(f"target: expected {text} to give a model, got {type(value).__name__}")
    return value


def load_value(text: str) -> Any:
    """Import the user's code and get what it names; a function other than a model is called.

    Raises `UserError` that says what was expected; what the user's code raises is told with its
    place.
    """
    value = load_attribute(text)
    if callable(value) and not isinstance(value, torch.nn.Module):
        try:
            value = value()
        except Exception as error:
            raise UserError(f"target: {text}() raised {told(error)}") from error
    return value


def load_attribute(text: str) -> Any:
    """Import the user's code and get what it names; nothing is called.

    Raises `UserError` that says what was expected.
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise UserError(f"target: expected MODULE:NAME or FILE.py:NAME, got {text!r}")
    value: Any = load_module(where)
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n in dir(value) if not n.startswith("_")]
            raise UserError(f"target: {where} has no {part!r}{nearest(part, names)}")
        value = getattr(value, part)
    return value


def as_target(value: Any, text: str) -> Target:
    """`(model, args)` or `(model, args, kwargs)`; one tensor or one mapping stands for itself."""
    if not isinstance(value, tuple | list) or len(value) not in (2, 3) or not callable(value[0]):
        raise UserError(f"target: expected {text} to give {SHAPE}, got {type(value).__name__}")
    model, args, kwargs = (*value, {})[:3]
    if isinstance(args, Mapping) and len(value) == 2:
        args, kwargs = (), args
    if not isinstance(args, tuple | list):
        args = (args,)
    if not isinstance(kwargs, Mapping):
        raise UserError(f"target: expected kwargs to be a mapping, got {type(kwargs).__name__}")
    return Target(model, tuple(args), dict(kwargs))


def load_module(where: str) -> ModuleType:
    """A module by name, found from the current folder too, or a file."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        if where.endswith(".py"):
            return load_file(Path(where))
        return import_module(where)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"target: importing {where} failed: {told(error)}") from error
    finally:
        sys.path.pop(0)


def load_file(path: Path) -> ModuleType:
    """A module from a file, under the file's name."""
    if not path.is_file():
        raise UserError(f"target: file not found: {path}")
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"target: {path} is no Python file")
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(error: Exception) -> str:
    """An exception on one line, with the place where it was raised."""
    here = str(Path(__file__).parent.parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((here, "<frozen"))
    ]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}{place}"
