"""`python -m tokenpass.cli` is the command `tokenpass`."""

from __future__ import annotations

from tokenpass.cli import main

main()
