"""Kernel templates, one per operator and target; installed as `tokenpass.codegen`.

The next kernel is one file and one entry here. No compiler is imported before its first launch.
"""

from __future__ import annotations

from tokenpass.codegen.base import KernelTemplate
from tokenpass.codegen.cpp.bipartite_match import CppBipartiteMatch
from tokenpass.codegen.cpp.glu_neuron import CppGluNeuron
from tokenpass.codegen.cpp.mask_compact import CppMaskCompact
from tokenpass.codegen.cpp.row_stats_relu import CppRowStatsRelu
from tokenpass.codegen.cpp.sparse_input_gemv import CppSparseInputGemv
from tokenpass.codegen.cpp.sparse_output_gemv import CppSparseOutputGemv
from tokenpass.codegen.triton.bipartite_match import TritonBipartiteMatch

TEMPLATES: tuple[KernelTemplate, ...] = (
    TritonBipartiteMatch(),
    CppBipartiteMatch(),
    CppMaskCompact(),
    CppSparseInputGemv(),
    CppSparseOutputGemv(),
    CppGluNeuron(),
    CppRowStatsRelu(),
)
