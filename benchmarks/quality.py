"""What is left of retrieval quality: recall, cosine to dense, and the interval of the difference.

Query i is answered by passage i. Queries are embedded by the dense model, passages by the variant,
so a variant that moves its embeddings away from dense is punished for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import bootstrap_interval


@dataclass(frozen=True)
class Quality:
    """Retrieval by a variant's passage embeddings, beside dense on the same passages.

    `difference` is recall@1 minus dense's, with its paired 95 % interval over queries; `cosine` is
    the mean cosine between the variant's and the dense embedding of a passage.
    """

    passages: int
    recall_at_1: float
    recall_at_5: float
    difference: float
    low: float
    high: float
    cosine: float


def ranks(queries: Tensor, passages: Tensor) -> Tensor:
    """Rank from 0 of each query's own passage [count]; ties count against it.

    `queries` and `passages` are unit vectors [count, width], row i belonging to row i.
    """
    scores = queries @ passages.T
    own = scores.diagonal().unsqueeze(1)
    others = ~torch.eye(len(scores), dtype=torch.bool)
    return ((scores >= own) & others).sum(dim=1)


def compare(queries: Tensor, dense: Tensor, variant: Tensor, *, seed: int = 0) -> Quality:
    """Quality of `variant` beside `dense`; all three are unit vectors [count, width]."""
    dense_ranks, variant_ranks = ranks(queries, dense), ranks(queries, variant)
    change = (variant_ranks < 1).double() - (dense_ranks < 1).double()
    low, high = bootstrap_interval(change.numpy(), np.mean, seed=seed)
    return Quality(
        passages=len(queries),
        recall_at_1=_share(variant_ranks < 1),
        recall_at_5=_share(variant_ranks < 5),
        difference=float(change.mean()),
        low=low,
        high=high,
        cosine=float((dense * variant).sum(dim=-1).mean()),
    )


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
