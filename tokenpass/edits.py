"""The plain values that pass between analysis, planner and rewriter: rejections, edits, plans."""

from __future__ import annotations

from dataclasses import dataclass, field

# Code -> what it means, and what can be done. `docs/rejections.md` says more about each; a test
# compares both with the sources.
REJECTION_CODES: dict[str, tuple[str, str]] = {
    "functorch_region": ("the graph has a vmap or grad region", "run that part outside the model"),
    "higher_order_operator": (
        "a region is an operator itself (checkpoint, cond, scan, flex attention)",
        "turn it off for inference",
    ),
    "train_mode": ("dropout or batch norm act as in training", "model.eval(), or training: allow"),
    "no_token_stream": ("no self-attention, or no floating output", "nothing: it runs dense"),
    "no_chain": ("no value separates the input from the output", "nothing: parallel streams"),
    "no_site": ("no value of the stream can be shortened", "nothing: it runs dense"),
    "mutated_alias": ("a value behind the site is written to in place", "write out of place"),
    "cache_keeps_length": ("keys and values behind the site are a cache", "shorter_cache: true"),
    "causal_leak": ("earlier positions are read of a causal stream", "logits_to_keep=1"),
    "nothing_behind": ("behind the site only what the outputs read is left", "nothing to gain"),
    "no_query_position": ("no position is read alone, so no attention row scores", "key_norm"),
    "restore_off_stream": ("pruned tokens are needed again off the stream", "merge instead"),
    "index_from_stream": ("the position read depends on the tokens", "compute it from the input"),
    "no_kernel_template": ("no kernel for this operator on this device", "the reference runs"),
    "kernel_dtype": ("the kernel does not take this dtype", "the reference runs"),
    "kernel_shape": ("the kernel does not take this shape", "the reference runs"),
}


@dataclass(frozen=True)
class Rejection:
    """Why something was left alone; `code` is one of `REJECTION_CODES`."""

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
