"""Quality against sparsity and against speed: `python -m benchmarks.sparsity_plot`.

Reads what `benchmarks.sparsity` and `benchmarks.lossy_decode --sweep` wrote, and draws perplexity
over dense for both trained decoders by the share left out, and for the gated one by the measured
speed-up of a decoding step at 1B shapes with the same policy (or one that acts at the same place)
and share. Levels without a measured speed are left out there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PICTURE = RESULTS / "sparsity.png"
TIMED_AS = {
    "wina": "teal",
    "teal": "teal",
    "random": "teal",
    "top_k": "top_k",
    "chess": "chess",
    "cats": "chess",
    "core_matching": "griffin",
    "griffin": "griffin",
    "random neurons": "chess",
}
"""The policy whose speed was measured: those of one place run the same kernels."""

GREY = {"random": ":", "random neurons": "-."}
HIGHEST = 4.0
"""Perplexity beside dense above which a curve is cut off."""


def curves(
    results: Sequence[Mapping[str, Any]], decoder: str, allocation: str
) -> dict[str, list[tuple[float, float]]]:
    """(share, perplexity over dense) of every policy, dense first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in results:
        same = one["decoder"] == decoder and one["policy"] in TIMED_AS
        if same and one["allocation"] == allocation:
            points = found.setdefault(one["policy"], [(0.0, 1.0)])
            points.append((one["share"], one["perplexity_ratio"]))
    return found


def speeds(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float], float]:
    """Measured speed-ups of the swept levels, by policy and share."""
    swept = [one for one in results if one["policy"] is not None and one["floor"] is None]
    return {(one["policy"], one["share"]): one["speedup"]["speedup"] for one in swept}


def draw(quality: Mapping[str, Any], timed: Mapping[str, Any], path: Path) -> None:
    """Three panels into a PNG file."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), constrained_layout=True)
    colours = {name: f"C{at}" for at, name in enumerate(n for n in TIMED_AS if n not in GREY)}
    for axis, decoder in zip(axes, ("swiglu", "relu2"), strict=False):
        for allocation, style in (("water_filling", "-"), ("uniform", "--")):
            for policy, points in curves(quality["results"], decoder, allocation).items():
                grey = GREY.get(policy)
                label = policy if allocation == "water_filling" or grey else None
                axis.plot(
                    *zip(*points, strict=True),
                    grey or style,
                    color="grey" if grey else colours[policy],
                    marker=None if grey or style == "--" else "o",
                    markersize=4,
                    linewidth=1.6 if style == "-" else 1.0,
                    label=label,
                )
        axis.set_title(f"{decoder} decoder: solid water-filling, dashed uniform", fontsize=10)
        axis.set_xlabel("share of entries left out, of those that the policy can")
        axis.legend(fontsize=8)
    known = speeds(timed["results"])
    for policy, points in curves(quality["results"], "swiglu", "uniform").items():
        placed = [
            (known[TIMED_AS[policy], share], ratio)
            for share, ratio in points
            if (TIMED_AS[policy], share) in known
        ]
        grey = policy in GREY
        axes[2].plot(
            *zip((1.0, 1.0), *placed, strict=True),
            GREY.get(policy, "-"),
            color="grey" if grey else colours[policy],
            marker=None if grey else "o",
            markersize=4,
            label=policy,
        )
    axes[2].set_title("swiglu decoder's quality, step of a 1B-shaped decoder, bf16", fontsize=10)
    axes[2].set_xlabel("measured speed-up over the best of eager and Inductor")
    axes[2].legend(fontsize=8)
    for axis in axes:
        axis.set_ylabel("perplexity over dense")
        axis.set_yscale("log")
        axis.set_ylim(0.98, HIGHEST)
        ticks = (1.0, 1.03, 1.1, 1.2, 1.5, 2.0, 3.0, 4.0)
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.axhline(1.03, color="black", linewidth=0.6, linestyle="--")
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", type=Path, default=RESULTS / "sparsity.json")
    parser.add_argument("--speed", type=Path, default=RESULTS / "lossy_decode.json")
    parser.add_argument("--output", type=Path, default=PICTURE)
    chosen = parser.parse_args(arguments)
    quality, timed = (json.loads(path.read_text()) for path in (chosen.quality, chosen.speed))
    draw(quality, timed, chosen.output)
    print(f"written to {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
