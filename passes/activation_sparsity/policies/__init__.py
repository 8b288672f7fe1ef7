"""Which entries of a projection's input are left out: the published rules, one file each.

Every policy gives one thing, a threshold for each entry: what is not larger in magnitude is left
out. Its parameters name the signals that it reads, and nothing else reaches it:

    sparsity       the share of entries to leave out, of all
    magnitude      histogram of the input's magnitudes, by entry (calibrated)
    gate, up       the same of an MLP's gate, its activation applied, and of the factor beside it
    core           how often each entry was among its token's most active ones (calibrated)
    column_norms   L2 norm of the weight's column for each entry, float32 [entries]
    values         the input itself at run time, [rows, entries]: the threshold is then computed
                   in every call
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
from tokenpass.passes.activation_sparsity.policies.core_neurons import core_neurons
from tokenpass.passes.activation_sparsity.policies.random import random
from tokenpass.passes.activation_sparsity.policies.teal import teal
from tokenpass.passes.activation_sparsity.policies.top_k import top_k
from tokenpass.passes.activation_sparsity.policies.wina import wina

CALIBRATED = frozenset({"magnitude", "gate", "up", "core"})
"""Signals that only a calibration has."""


@dataclass(frozen=True)
class Policy:
    """A rule, and where it acts: on inputs of projections, or on neurons of MLPs.

    `highest`: the largest share of entries, beside those that are zero by themselves, that may
    be left out: beyond it models are known to fall apart.
    Neurons are what enters an MLP's last projection; gated ones are listed by their gate, and what
    would multiply an unlisted gate is not computed either.
    """

    threshold: Callable[..., Tensor]
    place: Literal["inputs", "neurons"]
    highest: float

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


POLICIES: tuple[Policy, ...] = (
    Policy(wina, "inputs", 0.7),
    Policy(teal, "inputs", 0.7),
    Policy(chess, "neurons", 0.85),
    Policy(cats, "neurons", 0.85),
    Policy(core_neurons, "neurons", 0.6),
    Policy(top_k, "inputs", 0.7),
    Policy(random, "inputs", 0.7),
)
"""The first one is the default where something was calibrated."""

UNCALIBRATED = "top_k"
"""The default where nothing was."""

__all__ = ["CALIBRATED", "POLICIES", "UNCALIBRATED", "Policy"]
