"""Kernel templates, one per operator and target; installed as `tokenpass.codegen`.

The next kernel is one file and one entry here. No compiler is imported before its first launch.
"""

from __future__ import annotations

from tokenpass.codegen.base import KernelTemplate
from tokenpass.codegen.cpp.bipartite_match import CppBipartiteMatch
from tokenpass.codegen.triton.bipartite_match import TritonBipartiteMatch

TEMPLATES: tuple[KernelTemplate, ...] = (TritonBipartiteMatch(), CppBipartiteMatch())
