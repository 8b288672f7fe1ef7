"""`python -m benchmarks.train [--variant swiglu|relu2]`: trains decoders, writes weights and cards.

A run that was stopped continues where it was saved last; `--fresh` starts anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.train.loop import train
from benchmarks.train.recipe import RECIPES, VARIANTS
from benchmarks.train.shipped import ship
from benchmarks.train.text import library_text

CHECKPOINTS = Path(".benchmarks") / "train"


def main(arguments: list[str] | None = None) -> int:
    """Train what was asked for, all variants by default, and say what they reach."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget what was saved before")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    console = Console()
    text = library_text()
    console.print(f"text {text.digest}: {len(text.training)} bytes, {len(text.held_out)} held out")
    for variant in chosen.variant or VARIANTS:
        checkpoint = chosen.checkpoints / f"{variant}.pt"
        if chosen.fresh:
            checkpoint.unlink(missing_ok=True)
        recipe = RECIPES[variant]
        trained = train(recipe, text, checkpoint=checkpoint, say=console.print)
        stated = ship(recipe, trained, text)
        zeros = ", ".join(f"{share:.2f}" for share in stated.zeros)
        console.print(
            f"{variant}: {stated.full:.4f} bits per byte, {stated.stored:.4f} as stored, "
            f"{trained.seconds:.0f} s; zeros of each layer: {zeros}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
