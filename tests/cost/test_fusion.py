"""Which operators share a kernel, and which bytes cross a group's border."""

from __future__ import annotations

import sympy
import torch
from torch.nn import functional as F

from tokenpass.cost.fusion import OWNER_KEY, fuse
from tokenpass.ops.cost_record import OpCost


def groups_of(trace, function, *examples, own=None):
    return fuse(trace(function, *examples).graph, own or {}).groups


def test_mlp_block(trace):
    """[linear] [gelu] [linear] [add, layer_norm]: bytes by hand."""

    def block(x, up, down, gain):
        hidden = F.gelu(F.linear(x, up))
        return F.layer_norm(x + F.linear(hidden, down), (8,), gain)

    examples = torch.randn(5, 8), torch.randn(32, 8), torch.randn(8, 32), torch.randn(8)
    first, gelu, second, norm = groups_of(trace, block, *examples)
    assert [group.names for group in (first, gelu, second, norm)] == [
        ("linear",),
        ("gelu",),
        ("linear_1",),
        ("add", "layer_norm"),
    ]
    assert (first.bytes_read, first.bytes_written) == (4 * (40 + 256), 4 * 160)
    assert (gelu.bytes_read, gelu.bytes_written) == (4 * 160, 4 * 160)
    assert (second.bytes_read, second.bytes_written) == (4 * (160 + 256), 4 * 40)
    assert (norm.bytes_read, norm.bytes_written) == (4 * (40 + 40 + 8), 4 * 40)
    assert norm.work == "reduction"
    assert dict(norm.elements) == {"pointwise": 40, "reduction": 40}


def test_residual_sum_is_written_for_its_second_reader(trace):
    """h2 = h1 + f(norm(h1)): the two sums do not fuse, a library call lies between them."""

    def two(x, weight):
        first = x + 1
        return first + F.linear(F.layer_norm(first, (8,)), weight)

    head, gemm, tail = groups_of(trace, two, torch.randn(5, 8), torch.randn(8, 8))
    assert head.names == ("add", "layer_norm")
    assert head.bytes_written == 2 * 4 * 40
    assert gemm.work == "gemm"
    assert tail.names == ("add_1",)


def test_small_value_is_computed_inside_its_only_reader(trace):
    def scaled(x, gain):
        return x * (gain + 1)

    (only,) = groups_of(trace, scaled, torch.randn(5, 8), torch.randn(8))
    assert only.names == ("add", "mul")
    assert only.bytes_read == 4 * (40 + 8)


def test_rms_norm_spelt_out_is_one_kernel(trace):
    def rms(x, gain):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * gain

    (only,) = groups_of(trace, rms, torch.randn(5, 8), torch.randn(8))
    assert only.work == "reduction"
    assert (only.bytes_read, only.bytes_written) == (4 * (40 + 8), 4 * 40)


def test_slice_and_gather_read_what_they_take(trace):
    def part(x, index, table):
        return x[:, :2] + 1, F.embedding(index, table) * 2

    examples = torch.randn(4, 8), torch.tensor([1, 2]), torch.randn(100, 8)
    sliced, gathered = groups_of(trace, part, *examples)
    assert sliced.bytes_read == 4 * 8
    assert gathered.bytes_read == 2 * 8 + 4 * 16
    assert gathered.names == ("embedding", "mul")


def test_expanded_value_is_read_once(trace):
    (only,) = groups_of(
        trace, lambda x, y: x.expand(6, 8) + y, torch.randn(1, 8), torch.randn(6, 8)
    )
    assert only.bytes_read == 4 * (8 + 48)


def test_edits_keep_their_own_groups(trace):
    gm = trace(lambda x: (x + 1) * 2 - 3, torch.randn(4))
    mul = next(node for node in gm.graph.nodes if node.name == "mul")
    mul.meta[OWNER_KEY] = 3
    groups = fuse(gm.graph, {}).groups
    assert [(group.names, group.owner) for group in groups] == [
        (("add",), None),
        (("mul",), 3),
        (("sub",), None),
    ]


def test_own_operator_is_a_call_of_its_own(trace):
    own = {
        torch.ops.aten.relu.default: lambda out, x: OpCost(
            "pointwise", dims=(sympy.Integer(out.numel()),)
        )
    }
    groups = groups_of(trace, lambda x: torch.relu(x + 1) * 2, torch.randn(4), own=own)
    assert [group.names for group in groups] == [("add",), ("relu",), ("mul",)]


def test_unknown_operators_are_listed(trace):
    unknown = fuse(trace(torch.linalg.inv, torch.randn(4, 4)).graph, {}).unknown
    assert unknown and all("linalg_inv" in name for name in unknown)


def test_half_precision_counts_half_the_bytes(trace):
    x, weight = torch.randn(5, 8).bfloat16(), torch.randn(8, 8).bfloat16()
    (only,) = groups_of(trace, F.linear, x, weight)
    assert only.dtype == "bfloat16"
    assert only.bytes_read == 2 * (40 + 64)
