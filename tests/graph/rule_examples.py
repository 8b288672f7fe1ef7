"""At least one example call for every overload in `AXIS_RULES`: a new rule needs a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .rule_harness import Example, L, S, T, ex

aten = torch.ops.aten
ranks, autograd_ranks = torch.ops._c10d_functional, torch.ops._c10d_functional_autograd
WORLD = "0"
"""The name of the first process group."""
END = 2**63 - 1
CPU = torch.device("cpu")

X, TWO_D = T("b n c"), T("(b n) c")
LAYOUTS = ("b n c", "n b c", "b c n", "n c", "(b n) c", "(n b) c", "b (c n)", "b h n n", "n")


def alone(*rest: Any, kind: str = "float", **kwargs: Any) -> list[Example]:
    """One operand, tokens anywhere."""
    return [ex(T(dims, kind), *rest, **kwargs) for dims in LAYOUTS]


def pairs(
    kind: str = "float", other: str | None = None, *rest: Any, **kwargs: Any
) -> list[Example]:
    """Two operands that broadcast: equal, missing dimensions, size 1, batch on one side only."""
    shapes = [
        ("b n c", "b n c"),
        ("b n c", "n c"),
        ("n c", "b n c"),
        ("b n c", "c"),
        ("b n c", "b 1 c"),
        ("b n c", "1 n 1"),
        ("b n 1", "1 n c"),
        ("n b c", "n 1 c"),
        ("b h n m", "1 1 n m"),
        ("(b n) c", "(b n) c"),
        ("b n (h d)", "n (h d)"),
        ("b c n", "b c n"),
    ]
    other = other or kind
    return [ex(T(a, kind), T(b, other), *rest, **kwargs) for a, b in shapes]


def apart_and_restored(target_dims: list[tuple[str, tuple[Any, ...]]]) -> list[Example]:
    """Calls along a dimension that tokens may stand in, in which case they are restored."""
    return [
        ex(T(dims), *rest, tokens="restored" if whole else "apart")
        for dims, (*rest, whole) in target_dims
    ]


def along(*rest: Any) -> list[Example]:
    """`f(x, dim)`: over tokens (restored) and over something else."""
    calls = [
        ("b n c", 1, "restored"),
        ("b n c", -1, "apart"),
        ("n b c", 0, "restored"),
        ("b c n", 1, "apart"),
        ("n b c", 1, "samples"),
    ]
    return [ex(T(dims), *rest, dim, tokens=tokens) for dims, dim, tokens in calls]


def reduced(law: bool, *, kind: str = "float", one: bool = False) -> list[Example]:
    """`f(x, dims, keepdim)`: over tokens (by the law, or restored) and over something else."""
    summed = "mixed" if law else "restored"
    calls = [
        ("b n c", [1], False, summed),
        ("b n c", [1], True, summed),
        ("b n c", [-1], True, "apart"),
        ("b n c", [0], False, "samples"),
        ("b n m c", [0, -1], False, "samples"),
        ("n b c", [0], False, summed),
        ("b n c", [0, 1], False, summed),
        ("(b n) c", [0], False, summed),
        ("(b n) c", [1], False, "apart"),
        ("n c", [0], True, summed),
    ]
    picked = [c for c in calls if not one or len(c[1]) == 1]
    return [
        ex(T(dims, kind), at[0] if one else at, keep, tokens=tokens)
        for dims, at, keep, tokens in picked
    ]


def heads(*, mask: str | None = None, kind: str = "float", **kwargs: Any) -> Example:
    """Self-attention over `[batch, heads, tokens, width]`."""
    parts = [T("b h n d"), T("b h n d"), T("b h n e")]
    return ex(*parts, *([T(mask, kind)] if mask else []), tokens="mixed", **kwargs)


UNARY = alone()
BOOLS = pairs("bool")
COMPARE = pairs("int")

RESHAPES = [
    ex(X, S("(b n) c")),
    ex(TWO_D, S("b n c")),
    ex(T("(n b) c"), S("n b c")),
    ex(T("b n (h d)"), S("b n h d")),
    ex(T("b n h d"), S("b n (h d)")),
    ex(T("b n h d"), S("(b n h) d")),
    ex(T("(b n h) d"), S("(b n) (h d)")),
    ex(T("b h n d"), S("(b h) n d")),
    ex(T("(b h) n d"), S("b h n d")),
    ex(X, S("b 1 n 1 c")),
    ex(T("b n 3 h d"), S("b n (3 h d)")),
    ex(T("b (n 2) c"), S("b n (2 c)")),
    ex(T("n 6"), S("n 2 3")),
    ex(T("n 4"), S("(n 2) 2")),
    ex(T("b n c"), S("b (n c)")),
]

GATHERED = [
    ex(T("b n c"), 2, WORLD),
    ex(T("n b c"), 2, WORLD, tokens="restored"),
    ex(T("b c n"), 2, WORLD),
    ex(T("(b n) c"), 2, WORLD, tokens="restored"),
]
SCATTERED = [
    ex(T("2 b n c"), "sum", 2, WORLD),
    ex(T("2 n b c"), "sum", 2, WORLD),
    ex(T("(2 b) n c"), "sum", 2, WORLD, tokens="samples"),
    ex(T("(2 n) b c"), "sum", 2, WORLD, tokens="restored"),
]
EXAMPLES: Mapping[Any, list[Example]] = {
    aten.mul.Tensor: pairs() + pairs("int"),
    aten.mul.Scalar: alone(3),
    aten.div.Tensor: pairs(),
    aten.div.Scalar: alone(2.5),
    aten.neg.default: UNARY,
    aten.dropout.default: alone(0.5, False),
    aten.to.dtype: alone(torch.float32) + alone(torch.int64, kind="bool"),
    aten.to.dtype_layout: alone(dtype=torch.float32),
    aten.to.device: alone(CPU, torch.float32),
    aten._to_copy.default: alone(dtype=torch.float64),
    aten.contiguous.default: UNARY,
    aten.clone.default: UNARY,
    aten.alias.default: UNARY,
    aten.detach.default: UNARY,
    aten.detach_.default: [ex(T(dims)) for dims in LAYOUTS if "(" not in dims],
    aten.lift_fresh_copy.default: UNARY,
    aten.where.self: [
        ex(T(c, "bool"), T(a), T(b))
        for c, a, b in (
            ("b n c", "b n c", "b n c"),
            ("b n 1", "b n c", "1"),
            ("1 n c", "b 1 c", "n 1"),
            ("1 1 n m", "b h n m", "1"),
        )
    ],
    aten.where.ScalarSelf: [ex(T("b n 1", "bool"), 0.0, X), ex(T("n c", "bool"), 1.0, X)],
    aten.where.ScalarOther: [ex(T("b n 1", "bool"), X, 0.0), ex(T("n c", "bool"), X, 1.0)],
    aten.where.Scalar: alone(1.0, 0.0, kind="bool"),
    aten.masked_fill.Scalar: pairs("float", "bool", -3.0),
    aten.masked_fill.Tensor: [
        ex(X, T("b n 1", "bool"), T("")),
        ex(T("b h n m"), T("1 1 n m", "bool"), T("")),
    ],
    aten.__and__.Tensor: BOOLS,
    aten.__and__.Scalar: alone(True, kind="bool"),
    aten.__or__.Tensor: BOOLS,
    aten.__xor__.Tensor: BOOLS,
    aten.bitwise_and.Tensor: BOOLS + COMPARE,
    aten.bitwise_or.Tensor: BOOLS + COMPARE,
    aten.bitwise_not.default: alone(kind="bool"),
    aten.logical_and.default: BOOLS,
    aten.logical_or.default: BOOLS,
    aten.logical_not.default: alone(kind="bool"),
    aten.floor_divide.default: pairs(),
    aten.remainder.Scalar: alone(3),
    aten.gelu.default: alone(approximate="tanh"),
    aten.silu.default: UNARY,
    aten.relu.default: UNARY,
    aten.relu6.default: UNARY,
    aten.mish.default: UNARY,
    aten.hardswish.default: UNARY,
    aten.elu.default: UNARY,
    aten.selu.default: UNARY,
    aten.softplus.default: UNARY,
    aten.leaky_relu.default: alone(0.2),
    aten.square.default: UNARY,
    aten.clamp.default: alone(-0.5, 0.5) + alone(0, kind="int"),
    aten.rsub.Scalar: alone(1.0),
    aten.rsub.Tensor: pairs(),
    aten.full_like.default: alone(2.0),
    aten.zeros_like.default: UNARY,
    aten.ones_like.default: UNARY,
    aten.type_as.default: [ex(X, T("c")), ex(X, T("n", "int"))],
    aten.arange.default: [ex(L("n"), tokens="free")],
    aten.arange.start: [ex(1, L("n"), tokens="free")],
    aten.arange.start_step: [ex(0, L("n"), 2, tokens="free")],
    aten.zeros.default: [ex(S("b n"), tokens="free")],
    aten.ones.default: [ex(S("b n"), tokens="free")],
    aten.full.default: [ex(S("b n"), 2.0, tokens="free")],
    aten.scalar_tensor.default: [ex(2.0, tokens="free")],
    aten.new_zeros.default: [ex(X, S("b n"), tokens="free")],
    aten.new_ones.default: [ex(X, S("n n"), tokens="free")],
    aten.new_full.default: [ex(X, S("n"), 2.0, tokens="free")],
    aten.view.default: RESHAPES,
    aten._unsafe_view.default: RESHAPES,
    aten.reshape.default: RESHAPES,
    aten.flatten.using_ints: [
        ex(X, 0, 1),
        ex(X, -2, -1),
        ex(X),
        ex(T("b h n n"), 1, 2),
        ex(T("b c n"), 0, 1),
    ],
    aten.unflatten.int: [
        ex(TWO_D, 0, S("b n")),
        ex(T("b n (h d)"), -1, S("h d")),
        ex(T("b (n c)"), 1, S("n c")),
    ],
    aten.unsqueeze.default: [ex(X, at) for at in (0, 1, 2, 3, -1)] + [ex(TWO_D, 1)],
    aten.squeeze.default: [ex(T("b 1 n 1 c")), ex(T("1 n c"))],
    aten.squeeze.dim: [ex(T("b 1 n c"), 1), ex(X, 1), ex(T("n b 1"), -1)],
    aten.squeeze.dims: [ex(T("1 b n 1"), [0, -1]), ex(X, [1])],
    aten.transpose.int: [ex(X, 1, 2), ex(X, 0, 1), ex(T("b n h d"), -3, -2), ex(TWO_D, 0, 1)],
    aten.permute.default: [
        ex(X, [2, 0, 1]),
        ex(X, [0, 1, 2]),
        ex(T("b n 3 h d"), [2, 0, 3, 1, 4]),
        ex(T("b n h d"), [0, -2, -3, -1]),
        ex(T("(b n) h d"), [1, 2, 0]),
    ],
    aten.movedim.int: [ex(X, 1, 0), ex(X, 0, -1), ex(T("b n h d"), 1, 2), ex(T("b n h d"), -1, 0)],
    aten.t.default: [ex(T("n c")), ex(TWO_D), ex(T("n"))],
    aten.numpy_T.default: [ex(T("n c")), ex(TWO_D)],
    aten.expand.default: [
        ex(T("b n 1"), S("b n c")),
        ex(T("1 n c"), S("k n c")),
        ex(T("n c"), S("k n c")),
        ex(T("b g 1 n d"), S("b g r n d")),
        ex(X, [-1, -1, -1]),
    ],
    aten.repeat.default: [
        ex(X, [1, 1, 2]),
        ex(X, [1, 2, 1]),
        ex(T("1 n c"), S("k 1 1")),
        ex(X, [2, 3, 1, 1]),
    ],
    aten.linear.default: [
        ex(X, T("o c"), T("o")),
        ex(T("n b c"), T("o c")),
        ex(TWO_D, T("o c"), T("o")),
        ex(T("n c"), T("1 c")),
        ex(T("b h n c"), T("o c")),
        ex(T("b c n"), T("o n"), tokens="restored"),
    ],
    aten.matmul.default: [
        ex(X, T("c o")),
        ex(X, T("b c o")),
        ex(T("b h n d"), T("b h d m")),
        ex(T("b h n d"), T("b 1 d m")),
        ex(T("b h m d"), T("b h d n")),
        ex(T("b m n"), T("b n d"), tokens="mixed"),
        ex(T("m n"), T("b n d"), tokens="mixed"),
        ex(T("b n d"), T("d")),
        ex(T("n"), T("n d"), tokens="mixed"),
        ex(T("(b n)"), T("(b n) d"), tokens="mixed"),
        ex(T("m n"), T("n"), tokens="mixed"),
        ex(TWO_D, T("c o")),
        ex(T("m b"), T("n b c"), tokens="samples"),
    ],
    aten.mm.default: [
        ex(T("n c"), T("c o")),
        ex(TWO_D, T("c o")),
        ex(T("o c"), T("c (b n)")),
        ex(T("m n"), T("n d"), tokens="mixed"),
        ex(T("m (b n)"), T("(b n) d"), tokens="mixed"),
    ],
    aten.bmm.default: [
        ex(T("b n d"), T("b d m")),
        ex(T("(b h) n d"), T("(b h) d m")),
        ex(T("(b h) m n"), T("(b h) n d"), tokens="mixed"),
    ],
    aten.addmm.default: [
        ex(T("o"), TWO_D, T("c o")),
        ex(T("(b n) o"), TWO_D, T("c o")),
        ex(T("n 1"), T("n c"), T("c o")),
        ex(T("o"), T("n c"), T("c o"), beta=2, alpha=0.5),
        ex(T("d"), T("m n"), T("n d"), tokens="mixed"),
    ],
    aten.conv1d.default: [
        ex(T("b c n"), T("o c 3"), T("o"), [1], [1], tokens="restored"),
        ex(T("n c 5"), T("o c 3")),
        ex(T("c n"), T("o c 1"), tokens="restored"),
    ],
    aten.conv2d.default: [
        ex(T("b c n 4"), T("o c 1 3"), tokens="restored"),
        ex(T("n c 4 4"), T("o c 3 3"), None, [2, 2]),
    ],
    aten.conv2d.padding: [ex(T("b c n 4"), T("o c 3 3"), None, [1, 1], "same", tokens="restored")],
    aten.conv3d.default: [
        ex(T("b c n 2 2"), T("o c 1 1 2"), tokens="restored"),
        ex(T("n c 2 2 2"), T("o c 2 2 2")),
    ],
    aten.scaled_dot_product_attention.default: [
        heads(),
        heads(scale=0.3),
        heads(mask="n n"),
        heads(mask="1 1 n n"),
        heads(mask="b 1 1 n"),
        heads(mask="b 1 n n"),
        heads(mask="1 h n n"),
        heads(mask="b 1 1 n", kind="keep"),
        ex(T("b n d"), T("b n d"), T("b n d"), tokens="mixed"),
        ex(T("b n d"), T("b n d"), T("b n d"), T("b n n"), tokens="mixed"),
        ex(T("(b h) n d"), T("(b h) n d"), T("(b h) n d"), tokens="mixed"),
        ex(T("b h n d"), T("b h m d"), T("b h m e")),
        ex(T("b h n d"), T("b h m d"), T("b h m e"), T("1 1 n m")),
        ex(T("b h m d"), T("b h n d"), T("b h n e"), tokens="mixed"),
        ex(T("b h m d"), T("b h n d"), T("b h n e"), T("m n"), tokens="mixed"),
        ex(T("b 4 n d"), T("b 2 n d"), T("b 2 n e"), enable_gqa=True, tokens="mixed"),
    ],
    aten.softmax.int: [
        ex(X, -1),
        ex(X, 1, tokens="mixed"),
        ex(T("b h n n"), -2, tokens="mixed"),
        ex(T("b h m n"), -1, tokens="mixed"),
        ex(T("(b h) m n"), -1, tokens="mixed"),
        ex(TWO_D, 0, tokens="mixed"),
        ex(TWO_D, 1),
        ex(X, 0, tokens="samples"),
    ],
    aten._softmax.default: [ex(X, 1, False, tokens="mixed"), ex(X, 2, False)],
    aten.mean.dim: reduced(True),
    aten.mean.default: [ex(X, tokens="mixed"), ex(TWO_D, tokens="mixed")],
    aten.sum.dim_IntList: reduced(True) + reduced(True, kind="bool") + reduced(True, kind="int"),
    aten.sum.default: [ex(X, tokens="mixed"), ex(T("b n", "bool"), tokens="mixed")],
    aten.amax.default: reduced(True),
    aten.amin.default: reduced(True),
    aten.any.dim: reduced(True, kind="bool", one=True),
    aten.all.dim: reduced(True, kind="bool", one=True),
    aten.var.correction: [
        ex(X, [1], tokens="restored"),
        ex(X, [2], correction=0),
        ex(X, tokens="restored"),
    ],
    aten.var.dim: [ex(X, [1], False, tokens="restored"), ex(X, [2], False, True)],
    aten.std.correction: [ex(X, [1], tokens="restored"), ex(X, [2], correction=0, keepdim=True)],
    aten.argmax.default: reduced(False, one=True) + [ex(X, tokens="restored")],
    aten.max.dim: reduced(False, one=True),
    aten.logsumexp.default: reduced(False),
    aten.layer_norm.default: [
        ex(X, S("c"), T("c"), T("c")),
        ex(T("n b c"), S("c")),
        ex(TWO_D, S("c"), T("c")),
        ex(T("b n h d"), S("h d")),
        ex(T("b c n"), S("n"), tokens="restored"),
        ex(X, S("n c"), T("n c"), tokens="restored"),
        ex(T("n b c"), S("b c"), tokens="samples"),
    ],
    aten.native_layer_norm.default: [
        ex(X, S("c"), T("c"), T("c"), 1e-5),
        ex(T("b c n"), S("n"), None, None, 1e-5, tokens="restored"),
    ],
    aten.rms_norm.default: [ex(X, S("c"), T("c")), ex(T("b c n"), S("n"), tokens="restored")],
    aten.group_norm.default: [
        ex(T("b 4 n"), 2, T("4"), T("4"), tokens="restored"),
        ex(T("n 4 c"), 2, T("4")),
    ],
    aten.log_softmax.int: along(),
    aten.select.int: [
        ex(X, 1, 0, tokens="restored"),
        ex(X, 1, -1, tokens="restored"),
        ex(X, 2, 0),
        ex(X, 0, -1, tokens="samples"),
        ex(TWO_D, 0, 1, tokens="restored"),
    ],
    aten.slice.Tensor: [
        ex(X, 1, 0, 1, tokens="restored"),
        ex(X, 1, -1, END, tokens="restored"),
        ex(X, 1, 0, END),
        ex(X, 2, 0, 1),
        ex(X, 1, 1, END, tokens="restored"),
        ex(T("b n c"), 0, 0, 1, tokens="samples"),
    ],
    aten.narrow.default: [ex(X, 1, 1, 1, tokens="restored"), ex(X, 2, 0, 1)],
    aten.split.Tensor: [ex(X, 1, 1, tokens="restored"), ex(T("b n (3 c)"), L("c"), -1)],
    aten.split.sizes: [ex(T("b n 3"), [1, 2], -1), ex(T("b 3 n"), [2, 1], 1)],
    aten.split_with_sizes.default: [
        ex(T("b n 3"), [1, 2], -1),
        ex(T("n (2 c)"), S("c c"), 1),
    ],
    aten.chunk.default: [
        ex(T("b n c"), 1, 0, tokens="samples"),
        ex(T("b n (3 c)"), 3, -1),
        ex(X, 2, 1, tokens="restored"),
    ],
    aten.unbind.int: [ex(T("b n 3 c"), 2), ex(X, 1, tokens="restored"), ex(T("3 b n c"))],
    aten.cat.default: [
        ex([X, X], -1),
        ex([X, T("b n d")], 2),
        ex([T("b n c"), T("b n d"), T("b n c")], -1),
        ex([X, T("b m c")], 1, tokens="restored"),
        ex([T("b 1 c"), X], 1, tokens="restored"),
        ex([TWO_D, TWO_D], 1),
        ex([X, X], 0, tokens="samples"),
        ex([X, T("b n 0")], -1),
        ex([T("0"), X], 1),
    ],
    aten.stack.default: [ex([X, X], 0), ex([X, X], -1), ex([X, X, X], 1), ex([TWO_D, TWO_D], 1)],
    aten.cumsum.default: along(),
    aten.cumprod.default: along(),
    aten.roll.default: [
        ex(X, [1], [1], tokens="restored"),
        ex(X, [1], [2]),
        ex(X, [1], tokens="restored"),
    ],
    aten.flip.default: [ex(X, [0], tokens="samples"), ex(X, [1], tokens="restored"), ex(X, [-1])],
    aten.diff.default: [ex(X, 1, 1, tokens="restored"), ex(X, 1, -1)],
    aten.sort.default: along(),
    aten.sort.stable: [ex(X, stable=True, dim=1, tokens="restored"), ex(X, stable=True, dim=2)],
    aten.argsort.default: along(),
    aten.topk.default: [ex(X, 1, 1, tokens="restored"), ex(X, 1, 2)],
    aten.tril.default: [
        ex(T("b n n"), tokens="restored"),
        ex(T("n 2 3"), 1),
        ex(T("b m n"), tokens="restored"),
    ],
    aten.triu.default: [ex(T("n n"), 1, tokens="restored"), ex(T("n 2 3"))],
    aten.pad.default: [
        ex(X, [1, 0]),
        ex(X, [0, 0, 1, 1], tokens="restored"),
        ex(T("b c n"), [1, 2], tokens="restored"),
    ],
    aten.constant_pad_nd.default: [ex(X, [1, 0]), ex(X, [0, 0, 0, 1], 2.0, tokens="restored")],
    aten.embedding.default: [
        ex(T("v c"), T("b n", "v")),
        ex(T("v c"), T("n", "v")),
        ex(T("v c"), T("n b", "v")),
        ex(T("v c"), T("(b n)", "v")),
        ex(T("n c"), T("b m", "n"), tokens="restored"),
    ],
    aten.index.Tensor: [
        ex(X, [None, None, T("k", "c")]),
        ex(X, [None, T("k", "n")], tokens="restored"),
        ex(X, [T("b", "b"), T("b", "n")], tokens="restored"),
        ex(T("b c n"), [None, T("k", "c")]),
        ex(T("n c"), [T("b m", "n")], tokens="restored"),
        ex(T("v c"), [T("b n", "v")], tokens="restored"),
        ex(X, [T("k", "b")], tokens="samples"),
        ex(X, [T("b 1 c", "b"), None, T("b 1 c", "c")], tokens="samples"),
    ],
    aten.gather.default: [
        ex(X, 1, T("b m c", "n"), tokens="restored"),
        ex(X, 2, T("b n k", "c"), tokens="restored"),
    ],
    # over two ranks that hold the same
    ranks.all_reduce.default: alone("sum", WORLD),
    ranks.broadcast.default: alone(0, WORLD),
    ranks.wait_tensor.default: alone(),
    ranks.all_gather_into_tensor.default: GATHERED,
    autograd_ranks.all_gather_into_tensor.default: GATHERED,
    ranks.reduce_scatter_tensor.default: SCATTERED,
    autograd_ranks.reduce_scatter_tensor.default: SCATTERED,
}
