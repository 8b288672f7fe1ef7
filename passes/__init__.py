"""The passes, one file or folder each; installed as `tokenpass.passes`.

To add a pass, add its file and its entry in `PASSES`. Third parties add theirs through the entry
point group `tokenpass.passes`; the backend treats both alike.
"""

from __future__ import annotations

from tokenpass.passes.base import ExactPass, LossyPass
from tokenpass.passes.dead_tokens import DeadTokens
from tokenpass.passes.token_reduction.token_merge import TokenMerge
from tokenpass.passes.token_reduction.token_prune import TokenPrune

PASSES: tuple[ExactPass | LossyPass, ...] = (DeadTokens(), TokenMerge(), TokenPrune())

__all__ = ["PASSES", "ExactPass", "LossyPass"]
