"""User errors that reach the caller as they are: Dynamo wraps whatever else a backend raises."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from torch._dynamo.exc import ShortenTraceback

from tokenpass.errors import UserError


def passed_on(error: UserError) -> UserError:
    """The error as a kind of its own type that Dynamo lets through, without its frames above ours.

    `except OptionError` around the model's first call catches it.
    """
    out: Any = unwrapped_kind(type(error))(*error.args)
    out.message = str(error)
    # read by `ShortenTraceback`, whose own __init__ is hidden by that of ValueError
    out.first_useful_frame = sys._getframe(1)
    return out


@cache
def unwrapped_kind(kind: type[UserError]) -> type[UserError]:
    """A subclass with the same name that Dynamo counts among its own errors.

    It keeps its message: Dynamo adds advice on reporting bugs to what it lets through.
    """
    names = {"__module__": kind.__module__, "__str__": lambda error: error.message}
    return type(kind.__name__, (kind, ShortenTraceback), names)
