"""Where the command speaks: results on standard output, all else on standard error."""

from __future__ import annotations

from rich.console import Console

out = Console()
err = Console(stderr=True)
