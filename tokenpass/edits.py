"""The plain values that pass between analysis, planner and rewriter: rejections, edits, plans."""

from __future__ import annotations

from dataclasses import dataclass, field

# Code -> what it means, and what helps. `docs/rejections.md` says more about each; a test compares
# both with the sources.
REJECTION_CODES: dict[str, tuple[str, str]] = {
    # of a whole graph
    "functorch_region": ("the graph has a vmap or grad region", "move it out of the model"),
    "higher_order_operator": (
        "a region is an operator itself (checkpoint, cond, scan, flex attention)",
        "turn it off for inference",
    ),
    "tensor_subclass": (
        "a tensor subclass needs gradients, or is handed out",
        "torch.no_grad(), or hand out plain tensors",
    ),
    "train_mode": ("dropout or batch norm acts as in training", "model.eval() or training: allow"),
    # of a token stream
    "no_token_stream": ("no self-attention, or no floating output", "nothing: it runs dense"),
    "no_chain": ("no value of the stream separates input and output", "nothing: it runs dense"),
    "no_site": ("no value of the stream can be shortened", "nothing: it runs dense"),
    "index_from_stream": (
        "the position that is read depends on the tokens themselves",
        "compute it from the input",
    ),
    # of a site
    "mutated_alias": ("a value behind it is written to in place", "write out of place"),
    "cache_keeps_length": ("keys and values behind it leave as a cache", "shorter_cache: true"),
    "padded_cache": ("a shorter cache would not meet the padding mask", "leave the mask out"),
    "barrier": (
        "an operator needs all tokens, which are restored before it",
        "no gain behind it",
    ),
    "rows_reordered": (
        "rows are sorted, and not every step until they are back treats each row alone",
        "no gain before it",
    ),
    "window_partition": (
        "tokens are laid out in windows, which would hold others if some had left",
        "nothing: no gain there",
    ),
    "place_matters": (
        "an operator between attentions needs every token at its place",
        "no gain there",
    ),
    "level_out_of_range": (
        "a pinned level keeps more tokens than there are, or fewer than can stay",
        "choose a level in the range that the message names",
    ),
    "span_outside": (
        "the span ends behind the stream's last token",
        "a span inside the prompt, or `include` for the modules that it belongs to",
    ),
    "too_few_tokens": (
        "fewer tokens come to it than counts that price it need",
        "nothing: it stays dense, the others need not",
    ),
    "causal_leak": (
        "the stream is causal, and earlier positions are read too",
        "logits_to_keep=1, or a policy by position (uniform, random)",
    ),
    "nothing_behind": ("only what the outputs read is left behind it", "nothing: no gain there"),
    "no_query_position": (
        "no position is read alone, so no row of attention can score",
        "policy: key_norm, or token_merge",
    ),
    "restore_off_stream": (
        "a value off the stream needs tokens that were pruned",
        "token_merge, or prune behind it",
    ),
    "out_of_scope": (
        "the layers and names that a pass is limited to leave none of its sites",
        "name layers and modules that the graph has",
    ),
    "unalignable": (
        "values that an edit reads or changes could not be brought to one length",
        "nothing: the site stays dense",
    ),
    # of a region
    "region_dtype": ("the values have a type that no kernel takes", "float32, bfloat16 or float16"),
    "needs_gradients": (
        "the operators that would replace it have no gradient",
        "torch.no_grad() for inference",
    ),
    "dynamic_rows": (
        "the rows of a value are counted by several sizes that are not fixed",
        "mark one of them static",
    ),
    "too_many_rows": (
        "zeros of one row are not those of the others, so that everything is read",
        "nothing: a dense product is as fast",
    ),
    "not_calibrated": (
        "the policy reads statistics that no calibration has of it",
        "tokenpass.calibrate, or policy: top_k",
    ),
    "no_kernel_rate": (
        "the device's profile does not know how fast our kernel of few rows is",
        "run `tokenpass device` once to measure",
    ),
    "no_faster_kernel": (
        "the library's product is predicted to be as fast as ours",
        "nothing: no gain there",
    ),
    "no_projection": (
        "no linear layer is one that the policy acts on",
        "policy: teal or wina, which act on every linear layer",
    ),
    "pack_memory": (
        "a second copy of the weight would take more than is allowed",
        "raise the option pack_memory",
    ),
    # of a kernel
    "no_kernel_template": ("no kernel for the operator on this device", "the reference runs"),
    "kernel_dtype": ("the kernel does not take this dtype", "cast, or the reference runs"),
    "kernel_double": ("sums are asked for in float64", "the reference runs, as it should"),
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
    meaning. `span`: the positions (start, stop) of the full sequence that may lose tokens; all may
    where there are none.
    """

    pass_name: str
    site: str
    policy: str
    level: str
    span: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """All edits of one graph, with what was predicted when the planner chose them.

    `fingerprint` identifies the dense graph (operators, shapes, module names; never weights).
    Costs are in the objective's unit (seconds, flops or bytes); `error` is the planner's estimate
    of the relative L2 distance to dense.
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
