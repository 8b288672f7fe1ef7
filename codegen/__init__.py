"""Kernel templates, one per operator and target; installed as `tokenpass.codegen`.

The next kernel is one file and one entry here. No compiler is imported before its first launch.
"""

from __future__ import annotations

from tokenpass.codegen.base import KernelTemplate
from tokenpass.codegen.cpp.attention_column_sums import CppAttentionColumnSums
from tokenpass.codegen.cpp.attention_row import CppAttentionRow
from tokenpass.codegen.cpp.bipartite_match import CppBipartiteMatch
from tokenpass.codegen.cpp.farthest_point import CppFarthestPoint
from tokenpass.codegen.cpp.few_rows_linear import CppFewRowsLinear
from tokenpass.codegen.cpp.gather_tokens import CppGatherTokens
from tokenpass.codegen.cpp.glu_neuron import CppGluNeuron
from tokenpass.codegen.cpp.mask_compact import CppMaskCompact
from tokenpass.codegen.cpp.merge_tokens import CppMergeTokens
from tokenpass.codegen.cpp.row_stats_relu import CppRowStatsRelu
from tokenpass.codegen.cpp.sparse_input_gemv import CppSparseInputGemv
from tokenpass.codegen.cpp.sparse_linear import CppSparseLinear
from tokenpass.codegen.cpp.sparse_output_gemv import CppSparseOutputGemv
from tokenpass.codegen.triton.attention_column_sums import TritonAttentionColumnSums
from tokenpass.codegen.triton.attention_row import TritonAttentionRow
from tokenpass.codegen.triton.bipartite_match import TritonBipartiteMatch
from tokenpass.codegen.triton.farthest_point import TritonFarthestPoint
from tokenpass.codegen.triton.gather_tokens import TritonGatherTokens
from tokenpass.codegen.triton.glu_neuron import TritonGluNeuron
from tokenpass.codegen.triton.mask_compact import TritonMaskCompact
from tokenpass.codegen.triton.merge_tokens import TritonMergeTokens
from tokenpass.codegen.triton.row_stats_relu import TritonRowStatsRelu
from tokenpass.codegen.triton.sparse_input_gemv import TritonSparseInputGemv
from tokenpass.codegen.triton.sparse_linear import TritonSparseLinear
from tokenpass.codegen.triton.sparse_output_gemv import TritonSparseOutputGemv

TEMPLATES: tuple[KernelTemplate, ...] = (
    TritonAttentionColumnSums(),
    TritonAttentionRow(),
    TritonBipartiteMatch(),
    TritonFarthestPoint(),
    TritonGatherTokens(),
    TritonMergeTokens(),
    TritonGluNeuron(),
    TritonMaskCompact(),
    TritonRowStatsRelu(),
    TritonSparseInputGemv(),
    TritonSparseLinear(),
    TritonSparseOutputGemv(),
    CppAttentionColumnSums(),
    CppAttentionRow(),
    CppBipartiteMatch(),
    CppFarthestPoint(),
    CppFewRowsLinear(),
    CppGatherTokens(),
    CppGluNeuron(),
    CppMaskCompact(),
    CppMergeTokens(),
    CppRowStatsRelu(),
    CppSparseInputGemv(),
    CppSparseLinear(),
    CppSparseOutputGemv(),
)
