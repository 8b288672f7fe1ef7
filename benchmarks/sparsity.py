"""What activation sparsity costs in quality: `python -m benchmarks.sparsity [--check] [--plot]`.

Every policy at every level on both trained decoders: calibrated on their training text, judged by
bits per byte of held-out text beside dense, with paired intervals. Each position is masked as its
own decoding step would be, so that whole windows are judged at once; thresholds are those of the
pass, masks are carried out by zeros at full size, as the reference of a plan does. Policies that
choose for each prompt see the first half of every window, and are judged, as dense is, on the other
half, of which each position is a step behind that prompt.

Levels are equal in all projections ("uniform"), or allocated by water-filling to the same share of
all weights that the policy can leave out. Random sets, on inputs and on neurons, are the controls.

Floors: a loss of 3 % in perplexity at most at 40 % (the default policy); the decoder with squared
ReLU at its natural zeros is equal to dense; every policy loses less than random at each level.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

import tokenpass
from benchmarks.machine import fingerprint
from benchmarks.perplexity import window_bits
from benchmarks.timing import bootstrap_interval
from benchmarks.train.recipe import VARIANTS
from benchmarks.train.shipped import load
from benchmarks.train.text import library_text, windows
from tokenpass.capture.dynamo import capture
from tokenpass.config import Config
from tokenpass.options import read_options
from tokenpass.passes.activation_sparsity.activation_sparsity import ActivationSparsity
from tokenpass.passes.activation_sparsity.policies import POLICIES, Policy
from tokenpass.passes.activation_sparsity.policies.random import random
from tokenpass.passes.base import EntryMask, LossyChoice, LossyContext
from tokenpass.pipeline.facts import mask_facts
from tokenpass.pipeline.regions import context_of
from tokenpass.pipeline.sparsity import error_curve
from tokenpass.plan.allocation import Curve, allocate
from tokenpass.reference.facts import MaskFacts
from tokenpass.reference.masks import masked_entries

RESULT = Path(__file__).resolve().parent / "results" / "sparsity.json"
LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
TOKENS = 512
PROMPT = TOKENS // 2
CALIBRATION_WINDOWS = 16
STEPS = 20
ALLOWED = 1.03
"""Perplexity beside dense that the default policy may reach at `JUDGED`."""
JUDGED = 0.4
DEFAULT = POLICIES[0].name
CONTROLS = {"inputs": "random", "neurons": "random neurons"}
Masks = Mapping[str, EntryMask]


class Masked(Interpreter):
    """A dense graph whose projections read what masks leave of their inputs, row by row.

    `policy`: who chooses for each prompt, the first `PROMPT` positions of every sequence.
    """

    def __init__(
        self, module: GraphModule, masks: Mapping[str, MaskFacts], policy: Policy | None
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.masks, self.policy = masks, policy
        self.named = {node.name: node for node in module.graph.nodes}

    def run_node(self, n: Node) -> Any:
        mask = self.masks.get(n.name)
        if mask is None:
            return super().run_node(n)
        (value, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
        if self.policy is not None:
            policy = self.policy
            kept = torch.stack([behind_prompt(one, policy, mask.share) for one in value])
            return F.linear(kept, *rest, **kwargs)
        by = [self.env[self.named[name]] for name in mask.inputs]
        return F.linear(masked_entries(value, replace(mask, each_row=True), by), *rest, **kwargs)


def behind_prompt(value: Tensor, policy: Policy, share: float) -> Tensor:
    """One sequence `[tokens, entries]`, with what its prompt leaves of the others' entries."""
    if policy.seen is None:
        raise ValueError(f"{policy.name} sees no prompt")
    prompt, steps = value[:PROMPT], value[PROMPT:]
    limit = policy.threshold(prompt=policy.seen(prompt), sparsity=share)
    return torch.cat([prompt, torch.where(limit < 0, steps, 0.0)])


def masked(
    model: nn.Module, masks: Masks, policy: Policy | None = None
) -> Callable[[Tensor], Tensor]:
    """The model with masks by site: ids [batch, tokens] -> logits."""

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        captured = capture(module, inputs)
        told = mask_facts(captured.module, captured, masks)
        if masks.keys() and len(told) != len(masks):
            raise RuntimeError(f"{len(masks)} masks, of which the graph has {len(told)}")
        return Masked(captured.module, told, policy).run

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    return lambda ids: compiled(input_ids=ids, use_cache=False).logits


def choices_of(model: nn.Module, config: Config, policy: str) -> list[LossyChoice]:
    """What the pass could leave out in a decoding step of one row."""
    found: list[LossyChoice] = []

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        captured = capture(module, inputs)
        context = context_of(captured.module, captured, config)
        choices, refused = ActivationSparsity().choices(context, LossyContext(policy))
        if not choices:
            raise RuntimeError("; ".join(map(str, refused)))
        found.extend(choices)
        return Interpreter(captured.module).run

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(input_ids=torch.zeros(1, 1, dtype=torch.long))
    return found


@dataclass(frozen=True)
class Setting:
    """One point: a policy, how levels are allocated, and the share left out of all it can."""

    policy: str
    allocation: str
    share: float


def settings() -> Iterator[Setting]:
    """All points, controls first."""
    for share in LEVELS:
        for control in CONTROLS.values():
            yield Setting(control, "uniform", share)
    for policy in POLICIES:
        for share in LEVELS:
            if policy.name not in CONTROLS.values():
                yield Setting(policy.name, "uniform", share)
                yield Setting(policy.name, "water_filling", share)


def masks_for(
    setting: Setting, choices: Sequence[LossyChoice], sizes: Mapping[str, int]
) -> tuple[dict[str, EntryMask], float]:
    """Each site's mask at a setting, and the error that the planner estimates."""
    if setting.policy == CONTROLS["neurons"]:
        masks = {}
        for at, choice in enumerate(choices):
            entries = sizes[choice.site]
            masks[choice.site] = EntryMask(random(entries, at, setting.share), setting.share)
        return masks, float("nan")
    shares = [setting.share] * len(choices)
    if setting.allocation == "water_filling":
        shares = filled(choices, setting.share, sizes)
    if not shares:
        return {}, float("nan")
    error = sum(c.error(s) ** 2 for c, s in zip(choices, shares, strict=True) if s) ** 0.5
    return {c.site: c.mask(s) for c, s in zip(choices, shares, strict=True) if s}, error


def filled(choices: Sequence[LossyChoice], share: float, sizes: Mapping[str, int]) -> list[float]:
    """Levels of least estimated error that leave out a share of all weights together.

    Empty where the policy's highest levels do not.
    """
    tables = [
        (0.0, *(round(choice.highest * at / STEPS, 4) for at in range(1, STEPS + 1)))
        for choice in choices
    ]
    curves = [
        Curve(tuple(-s * sizes[c.site] for s in table), error_curve(c, table))
        for c, table in zip(choices, tables, strict=True)
    ]
    goal = -share * sum(sizes[choice.site] for choice in choices)
    found = allocate(curves, goal)
    if found.notes:
        return []
    return [table[level] for table, level in zip(tables, found.levels, strict=True)]


def weight_sizes(model: nn.Module) -> dict[str, int]:
    """Numbers in the weight of each site's projection, and entries by site."""
    return {
        f"{name}:projection": module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def entry_sizes(model: nn.Module) -> dict[str, int]:
    """Entries of each projection's input."""
    return {
        f"{name}:projection": module.in_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def judged(
    model: nn.Module, masks: Masks, rows: Tensor, policy: Policy | None = None, half: bool = False
) -> Tensor:
    """Bits per byte of each window, or of its second half."""
    read = TOKENS - PROMPT if half else None
    return window_bits(masked(model, masks, policy), rows, read=read)


def measure(variant: str, count: int, only: str | None) -> Iterator[dict[str, Any]]:
    """All points of one decoder."""
    model = load(variant)  # type: ignore[arg-type]
    rows = windows(library_text().held_out, TOKENS, limit=count)
    dense = {half: judged(model, {}, rows, half=half) for half in (False, True)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.yaml"
        texts = windows(library_text().training, TOKENS, limit=CALIBRATION_WINDOWS)[:, :-1]
        batches = [{"input_ids": text[None], "use_cache": False} for text in texts]
        tokenpass.calibrate(model, batches, path=path, progress=False)
        config = read_options({"calibration": str(path)})
        known: dict[str, list[LossyChoice]] = {}
        for setting in settings():
            if only is not None and only not in setting.policy:
                continue
            name = "chess" if setting.policy == CONTROLS["neurons"] else setting.policy
            if name not in known:
                known[name] = choices_of(model, config, name)
            neurons = setting.policy == CONTROLS["neurons"]
            sizes = entry_sizes(model) if neurons else weight_sizes(model)
            masks, error = masks_for(setting, known[name], sizes)
            if not masks:
                continue
            policy = next((p for p in POLICIES if p.name == setting.policy and p.by_prompt), None)
            half = policy is not None
            bits = judged(model, masks, rows, policy, half)
            yield point(variant, setting, dense[half], bits, error)
    natural = {
        site: EntryMask(torch.zeros(1), 0.0)
        for site in (choice.site for choice in known.get("chess", ()))
    }
    if natural and only is None:
        bits = judged(model, natural, rows)
        yield point(variant, Setting("natural zeros", "uniform", 0.0), dense[False], bits, 0.0)


def point(variant: str, setting: Setting, dense: Tensor, bits: Tensor, error: float) -> Any:
    """One result as plain data."""
    change = (bits - dense).numpy()
    low, high = bootstrap_interval(change, np.mean, seed=0)
    mean = float(change.mean())
    return {
        "decoder": variant,
        "policy": setting.policy,
        "allocation": setting.allocation,
        "share": setting.share,
        "dense_bits": float(dense.mean()),
        "bits": float(bits.mean()),
        "perplexity_ratio": 2**mean,
        "low": 2**low,
        "high": 2**high,
        "estimated_error": None if error != error else error,
        "windows": len(dense),
    }


def misses(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The floors that are not met, in words."""
    found = []
    by = {(r["decoder"], r["policy"], r["allocation"], r["share"]): r for r in results}
    neurons = {policy.name for policy in POLICIES if policy.place == "neurons"}
    for (decoder, policy, allocation, share), one in by.items():
        ratio = one["perplexity_ratio"]
        if policy == "natural zeros" and decoder == "relu2" and abs(ratio - 1) > 1e-6:
            found.append(f"{decoder} at its natural zeros: {ratio:.6f} of dense's perplexity")
        judged_here = policy == DEFAULT and share == JUDGED and allocation == "water_filling"
        if judged_here and ratio > ALLOWED:
            found.append(f"{decoder} {policy} at {share:.0%}: {ratio:.3f}, allowed {ALLOWED}")
        if policy in (*CONTROLS.values(), "natural zeros"):
            continue
        control = CONTROLS["neurons" if policy in neurons else "inputs"]
        beside = by.get((decoder, control, "uniform", share))
        if beside is not None and ratio >= beside["perplexity_ratio"]:
            found.append(f"{decoder} {policy} {allocation} at {share:.0%} loses to random")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the file; 1 with `--check` where a floor was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=32, help="windows of 512 bytes judged")
    parser.add_argument("--decoder", choices=VARIANTS, help="one of the two")
    parser.add_argument("--only", help="the policies whose name contains this")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a floor is missed")
    parser.add_argument("--output", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    if chosen.only is not None and chosen.output.exists():  # the others stay
        known = json.loads(chosen.output.read_text())["results"]
        results = [one for one in known if chosen.only not in one["policy"]]
    with torch.no_grad():
        for variant in VARIANTS if chosen.decoder is None else (chosen.decoder,):
            for one in measure(variant, chosen.windows, chosen.only):
                results.append(one)
                print(
                    f"{variant:7} {one['policy']:15} {one['allocation']:14} {one['share']:4.0%}  "
                    f"perplexity {one['perplexity_ratio']:7.3f} [{one['low']:.3f}, "
                    f"{one['high']:.3f}] of dense",
                    flush=True,
                )
                text = json.dumps({"machine": fingerprint(), "results": results}, indent=1)
                chosen.output.write_text(text + "\n")
    missed = misses(results)
    print(*missed or ["all floors met"], sep="\n")
    return int(chosen.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
