"""Which entries of a projection's input are left out: the published rules, one file each.

Every policy gives one thing, a threshold for each entry: what is not larger in magnitude is left
out. Its parameters name the signals that it reads, and nothing else reaches it:

    sparsity       the share of entries to leave out, of all
    magnitude      histogram of the input's magnitudes, by entry (calibrated)
    gate, up       the same of an MLP's gate, its activation applied, and of the factor beside it
    column_norms   L2 norm of the weight's column for each entry, float32 [entries]
    values         the input itself at run time, [rows, entries]: the threshold is then computed
                   in every call
    prompt         what the policy's `seen` gave of the values of the prompt whose cache a decoding
                   step reads, float32 [entries]: the threshold is then computed once a prompt
    entries, seed  how many there are, and a number that is the site's own

To add one, add its file and its entry in `POLICIES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenpass.passes.activation_sparsity.policies.cats import cats
from tokenpass.passes.activation_sparsity.policies.chess import chess
from tokenpass.passes.activation_sparsity.policies.core_matching import core_counts, core_matching
from tokenpass.passes.activation_sparsity.policies.griffin import griffin, relative_energy
from tokenpass.passes.activation_sparsity.policies.random import random
from tokenpass.passes.activation_sparsity.policies.teal import teal
from tokenpass.passes.activation_sparsity.policies.top_k import top_k
from tokenpass.passes.activation_sparsity.policies.wina import wina
from tokenpass.statistics.stored import SiteStatistics

CALIBRATED = frozenset({"magnitude", "gate", "up"})
"""Signals that only a calibration has."""


@dataclass(frozen=True)
class Policy:
    """A rule, and where it acts: on inputs of projections, or on neurons of MLPs.

    `highest`: the largest share of entries, beside those that are zero by themselves, that may
    be left out: beyond it models are known to fall apart.
    Neurons are what enters an MLP's last projection; gated ones are listed by their gate, and what
    would multiply an unlisted gate is not computed either.

    `seen`: what is kept of a prompt's values, `[rows, entries]` -> `[entries]`, for the signal
    `prompt`; what two calls gave is added. Thresholds of a prompt are -1 or infinite, so that what
    is left out is known before any value is. `expected`: what a prompt like the calibration has.
    """

    threshold: Callable[..., Tensor]
    place: Literal["inputs", "neurons"]
    highest: float
    seen: Callable[[Tensor], Tensor] | None = None
    expected: Callable[[SiteStatistics], Tensor] | None = None

    @property
    def name(self) -> str:
        """As it is called in options and plans."""
        return self.threshold.__name__

    @property
    def signals(self) -> frozenset[str]:
        """What it reads."""
        return frozenset(inspect.signature(self.threshold).parameters)

    @property
    def calibrated(self) -> bool:
        """Whether it needs a calibration."""
        return bool(self.signals & CALIBRATED)

    @property
    def at_run_time(self) -> bool:
        """Whether its threshold is computed in every call."""
        return "values" in self.signals

    @property
    def by_prompt(self) -> bool:
        """Whether each prompt has thresholds of its own."""
        return self.seen is not None


def energy_of(known: SiteStatistics) -> Tensor:
    """The mean square of each entry, [entries]."""
    return known.magnitude.energy().float()


def core_of(known: SiteStatistics) -> Tensor:
    """How often each entry was at its token's core, [entries]; its energy where not counted."""
    return energy_of(known) if known.core is None else known.core.float()


POLICIES: tuple[Policy, ...] = (
    Policy(wina, "inputs", 0.7),
    Policy(teal, "inputs", 0.7),
    Policy(chess, "neurons", 0.85),
    Policy(cats, "neurons", 0.85),
    Policy(griffin, "neurons", 0.6, relative_energy, expected=energy_of),
    Policy(core_matching, "neurons", 0.6, core_counts, expected=core_of),
    Policy(top_k, "inputs", 0.7),
    Policy(random, "inputs", 0.7),
)
"""The first one is the default where something was calibrated."""

UNCALIBRATED = "top_k"
"""The default where nothing was."""

__all__ = ["CALIBRATED", "POLICIES", "UNCALIBRATED", "Policy"]
