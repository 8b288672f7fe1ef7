"""tokenpass's own operators, one file each: schema, fake kernel, reference and cost.

Importing this package defines every operator of `OPERATORS` in torch's dispatcher, so that a
process which loads a compiled graph from a cache finds them. The next operator is one file and
one entry here; its oracle is `tests/ops/oracles/<name>.py`.
"""

from __future__ import annotations

import torch

from tokenpass.ops import (
    attention_column_sums,
    attention_row,
    bipartite_match,
    farthest_point,
    few_rows_linear,
    gather_tokens,
    glu_neuron,
    mask_compact,
    merge_assignment,
    merge_tokens,
    row_stats_relu,
    sparse_input_gemv,
    sparse_linear,
    sparse_output_gemv,
)
from tokenpass.ops.operator import NAMESPACE, Operator

OPERATORS: tuple[Operator, ...] = (
    attention_column_sums.OPERATOR,
    attention_row.OPERATOR,
    bipartite_match.OPERATOR,
    farthest_point.OPERATOR,
    few_rows_linear.OPERATOR,
    gather_tokens.OPERATOR,
    glu_neuron.OPERATOR,
    mask_compact.OPERATOR,
    merge_assignment.OPERATOR,
    merge_tokens.OPERATOR,
    row_stats_relu.OPERATOR,
    sparse_input_gemv.OPERATOR,
    sparse_linear.OPERATOR,
    sparse_output_gemv.OPERATOR,
)

LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
"""Keeps the definitions alive: they end with this object."""

for operator in OPERATORS:
    operator.register(LIBRARY)
