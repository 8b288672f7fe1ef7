"""The command `tokenpass`: its parts are loaded when it runs, since typer and rich are an extra."""

from __future__ import annotations

import sys

EXTRA = {"typer", "rich", "click", "psutil"}


def main() -> None:
    """Run the command; says what to install where the extra `cli` is missing."""
    try:
        from tokenpass.cli.app import run  # noqa: PLC0415 - an optional toolchain
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA:
            raise
        sys.exit(
            f"tokenpass: the command needs {error.name}, which is not installed; "
            "run: pip install 'tokenpass[cli]'"
        )
    run()
