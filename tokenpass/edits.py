"""The plain values that pass between analysis, planner and rewriter: rejections, edits, plans."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rejection:
    """Why something was left alone; `code` is one of the fixed codes in `docs/rejections.md`."""

    code: str
    where: str
    because: str
    hint: str = ""
    source: str = ""

    def __str__(self) -> str:
        place = f" at {self.source}" if self.source else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.code} [{self.where}]{place}: {self.because}{hint}"


@dataclass(frozen=True)
class Edit:
    """One decision: this pass acts at this site, by this policy, at this level.

    `level` is an integer expression of `tokens`, the stream's full length, for the token passes
    (tokens kept, e.g. `"192"` or `"16*floor(3*tokens/64)"`); other passes give it their own
    meaning.
    """

    pass_name: str
    site: str
    policy: str
    level: str


@dataclass(frozen=True)
class Plan:
    """All edits of one graph, with what was predicted when the planner chose them.

    `fingerprint` identifies the dense graph (operators, shapes, module names; never weights).
    Costs are in the objective's unit (seconds or flops); `error` is the planner's estimate of the
    relative L2 distance to dense.
    """

    fingerprint: str
    edits: tuple[Edit, ...] = ()
    budget: float = 1.0
    objective: str = "latency"
    dense_cost: float = 0.0
    planned_cost: float = 0.0
    error: float = 0.0
    rejections: tuple[Rejection, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    dropped: tuple[Edit, ...] = field(default=())

    @property
    def share(self) -> float:
        """Predicted cost as a share of dense (1.0 when nothing was predicted)."""
        return self.planned_cost / self.dense_cost if self.dense_cost else 1.0
