"""Every exception and warning that tokenpass raises, so that callers can catch one family."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TokenpassError(Exception):
    """Base of all errors raised by tokenpass."""


class UserError(TokenpassError, ValueError):
    """A request that cannot be carried out: says what was expected, what was got, and the fix."""


class OptionError(UserError):
    """One or more options are wrong; the message lists every problem found, one per line."""


class ConfigError(UserError):
    """A pass-config or plan file is wrong; the message names file, line and key."""


class PlanMismatchError(UserError):
    """A pinned plan was made for another graph, or names a site that this graph lacks."""


class CalibrationMismatchError(UserError):
    """A calibration that was made for another model."""


class CallError(UserError, IndexError):
    """An operator was called with values that it cannot take, such as an index out of range."""


class InternalError(TokenpassError):
    """A defect in tokenpass itself: names the pass and the node at which it showed."""


class FallbackWarning(UserWarning):
    """A graph was compiled dense because tokenpass failed on it; names the cause."""


class CalibrationWarning(UserWarning):
    """Something that calibration met and did not use; names what and how much."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A ready phrase that names the closest allowed word, or the empty string if none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
