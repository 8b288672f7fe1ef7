"""The passes, one file or folder each; installed as `tokenpass.passes`.

To add a pass, add its file and its entry in `PASSES`. Third parties add theirs through the entry
point group `tokenpass.passes`; the backend treats both alike.
"""

from __future__ import annotations

from tokenpass.passes.activation_sparsity.activation_sparsity import ActivationSparsity
from tokenpass.passes.activation_sparsity.natural_zeros import NaturalZeros
from tokenpass.passes.activation_sparsity.routed_experts import RoutedExperts
from tokenpass.passes.base import ExactPass, LossyPass, LossyRegionPass, RegionPass
from tokenpass.passes.dead_tokens import DeadTokens
from tokenpass.passes.few_rows import FewRows
from tokenpass.passes.token_reduction.token_merge import TokenMerge
from tokenpass.passes.token_reduction.token_prune import TokenPrune

AnyPass = ExactPass | LossyPass | RegionPass | LossyRegionPass

PASSES: tuple[AnyPass, ...] = (
    DeadTokens(),
    NaturalZeros(),
    RoutedExperts(),
    FewRows(),
    TokenMerge(),
    TokenPrune(),
    ActivationSparsity(),
)

__all__ = ["PASSES", "AnyPass", "ExactPass", "LossyPass", "LossyRegionPass", "RegionPass"]
