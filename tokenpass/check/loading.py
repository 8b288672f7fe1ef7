"""How the check gets at the user's models: the command line hands over what imports them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenpass.check.facts import Call


class LoadFailed(Exception):
    """What a check file names could not be loaded, or is not what it should be."""


class Target(Protocol):
    """A model and its first call."""

    model: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Loader:
    """Imports what a check file names; each raises `LoadFailed`.

    `told`: an exception of the user's code on one line, with its place.
    """

    target: Callable[[str], Any]
    value: Callable[[str], Any]
    attribute: Callable[[str], Any]
    told: Callable[[Exception], str]

    def calls(self, name: str | None) -> Sequence[Call]:
        """Further calls of the model."""
        if name is None:
            return ()
        given = self.value(name)
        try:
            return [as_call(one) for one in given]
        except TypeError as error:
            expected = "a list of (args), of (args, kwargs), or of kwargs"
            raise LoadFailed(f"{name}: expected {expected}: {error}") from error

    def function(self, name: str | None) -> Callable[..., Any] | None:
        """A function that is not called yet."""
        if name is None:
            return None
        found = self.attribute(name)
        if not callable(found):
            raise LoadFailed(f"{name}: expected a function, got {type(found).__name__}")
        return found


def as_call(value: Any) -> Call:
    """(args, kwargs) of one call: a mapping is all keywords, a tuple may end in one."""
    if isinstance(value, Mapping):
        return (), value
    if isinstance(value, tuple | list):
        pair = len(value) == 2 and isinstance(value[0], tuple | list)
        if pair and isinstance(value[1], Mapping):
            return tuple(value[0]), value[1]
        return tuple(value), {}
    return (value,), {}
