"""A torch.compile backend that spends only the share of a transformer's cost that you name.

Importing this package costs nothing: what it offers is loaded when it is first asked for, and
`torch.compile(model, backend="tokenpass")` needs no import of it at all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenpass.backend import reset
    from tokenpass.calibration import calibrate
    from tokenpass.explanation import explain

__all__ = ["__version__", "calibrate", "explain", "reset"]

__version__ = "0.1.0"

# Name -> module that defines it. No name may be a module's too: importing `tokenpass.explain`
# anywhere would put the module in the function's place.
_LAZY = {
    "calibrate": "tokenpass.calibration",
    "explain": "tokenpass.explanation",
    "reset": "tokenpass.backend",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
