"""The calibration that the options name, read once."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from tokenpass.config import Config
from tokenpass.errors import OptionError
from tokenpass.statistics.stored import Calibration

log = logging.getLogger("tokenpass")


def find_calibration(config: Config) -> Calibration | None:
    """The calibration of the option `calibration`; None without one.

    A file is read again when it has changed. Raises `ConfigError` where it cannot be read,
    `OptionError` for what is neither a path nor a calibration.
    """
    given = config.calibration
    if given is None or isinstance(given, Calibration):
        return given
    if not isinstance(given, str):
        kind = type(given).__name__
        raise OptionError(f"calibration: expected a path or a Calibration, got a {kind}")
    try:
        stat = Path(given).stat()
    except OSError:
        return Calibration.load(given)  # says what is wrong
    return _loaded(given, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _loaded(path: str, _changed: int, _size: int) -> Calibration:
    found = Calibration.load(path)
    if not found.complete:
        log.warning(
            "calibration %s was interrupted after %d batches; calibrating again goes on",
            path,
            found.batches,
        )
    return found
