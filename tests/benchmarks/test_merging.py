"""Which profiled events count as merging."""

from __future__ import annotations

from benchmarks.merging import merges


def test_what_moves_tokens_is_merging() -> None:
    assert merges("tokenpass::bipartite_match")
    assert merges("graph_0_cpp_fused_add_native_layer_norm_scatter_add_12")
    assert merges("cpp_fused_gather_3")
    assert not merges("aten::addmm") and not merges("cpp_fused_gelu_4")
