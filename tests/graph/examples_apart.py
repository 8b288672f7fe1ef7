"""Example calls of operators that treat tokens apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .rule_language import LAYOUTS, TWO_D, Example, L, S, T, X, alone, along, ex, pairs, shares

aten = torch.ops.aten
CPU = torch.device("cpu")

SHARES = T("b m n", "share")
UNARY = alone()
FILLED = [ex(T(dims), tokens="shape", out=dims) for dims in LAYOUTS]
KEEPS_SUMS = alone(kept=True)
BOOLS = pairs("bool")
COMPARE = pairs("int")

APART: Mapping[Any, list[Example]] = {
    aten.mul.Tensor: pairs(kept=True) + pairs("int"),
    aten.mul.Scalar: alone(3, kept=True),
    aten.div.Tensor: pairs(kept=True),
    aten.div.Scalar: alone(2.5, kept=True),
    aten.neg.default: KEEPS_SUMS,
    aten.dropout.default: alone(0.5, False, kept=True),
    aten.to.dtype: alone(torch.float32, kept=True) + alone(torch.int64, kind="bool"),
    aten.to.dtype_layout: alone(dtype=torch.float32, kept=True),
    aten.to.device: alone(CPU, torch.float32, kept=True),
    aten._to_copy.default: alone(dtype=torch.float64, kept=True),
    aten.contiguous.default: KEEPS_SUMS,
    aten.clone.default: KEEPS_SUMS,
    aten.alias.default: KEEPS_SUMS,
    aten.detach.default: KEEPS_SUMS,
    aten.detach_.default: [
        *(ex(T(dims)) for dims in LAYOUTS if "(" not in dims),
        shares(kept=True),
    ],
    aten.lift_fresh_copy.default: KEEPS_SUMS,
    aten.where.self: [
        ex(T(c, "bool"), T(a), T(b))
        for c, a, b in (
            ("b n c", "b n c", "b n c"),
            ("b n 1", "b n c", "1"),
            ("1 n c", "b 1 c", "n 1"),
            ("1 1 n m", "b h n m", "1"),
            ("b n c", "b n c", "n 1"),
        )
    ]
    + [ex(T("m 1", "bool"), T("m 1"), SHARES, tokens="restored")],
    aten.where.ScalarSelf: [
        ex(T("b n 1", "bool"), 0.0, X),
        ex(T("n c", "bool"), 1.0, X),
        ex(T("m 1", "bool"), 0.5, SHARES, tokens="restored"),
    ],
    aten.where.ScalarOther: [
        ex(T("b n 1", "bool"), X, 0.0),
        ex(T("n c", "bool"), X, 1.0),
        ex(T("m 1", "bool"), SHARES, 0.5, tokens="restored"),
    ],
    aten.where.Scalar: alone(1.0, 0.0, kind="bool"),
    aten.masked_fill.Scalar: pairs("float", "bool", -3.0),
    aten.masked_fill.Tensor: [
        ex(X, T("b n 1", "bool"), T("")),
        ex(T("b h n m"), T("1 1 n m", "bool"), T("")),
        shares(T("m 1", "bool"), T(""), kept=False),
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
    aten.div.Scalar_mode: alone(2, rounding_mode="floor"),
    aten.div.Tensor_mode: pairs(rounding_mode="trunc"),
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
    aten.full_like.default: [ex(T(dims), 2.0, tokens="shape", out=dims) for dims in LAYOUTS],
    aten.zeros_like.default: FILLED,
    aten.ones_like.default: FILLED,
    aten.type_as.default: [ex(X, T("c")), ex(X, T("n", "int")), shares(T("c"), kept=False)],
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
    aten.linear.default: [
        ex(X, T("o c"), T("o")),
        ex(T("n b c"), T("o c")),
        ex(TWO_D, T("o c"), T("o")),
        ex(T("n c"), T("1 c")),
        ex(T("b h n c"), T("o c")),
        ex(T("b c n"), T("o n"), tokens="restored"),
        ex(T("n c"), T("n c"), tokens="weights"),
        ex(T("b n c", "share"), T("o c"), T("o"), tokens="restored"),
    ],
    aten.layer_norm.default: [
        ex(X, S("c"), T("c"), T("c")),
        ex(T("n b c"), S("c")),
        ex(TWO_D, S("c"), T("c")),
        ex(T("b n h d"), S("h d")),
        ex(T("b c n"), S("n"), tokens="restored"),
        ex(X, S("n c"), T("n c"), tokens="restored"),
        ex(T("b c n"), S("n"), T("n"), T("n"), tokens="restored"),
        ex(T("n b c"), S("b c"), tokens="samples"),
        ex(T("b n c", "share"), S("c"), tokens="restored"),
    ],
    aten.native_layer_norm.default: [
        ex(X, S("c"), T("c"), T("c"), 1e-5),
        ex(T("b c n"), S("n"), None, None, 1e-5, tokens="restored"),
        ex(T("b n c", "share"), S("c"), None, None, 1e-5, tokens="restored"),
    ],
    aten.rms_norm.default: [
        ex(X, S("c"), T("c"), out="b n c"),
        ex(T("b c n"), S("n"), tokens="restored"),
        ex(T("b n c", "share"), S("c"), tokens="restored"),
    ],
    aten.group_norm.default: [
        ex(T("b 4 n"), 2, T("4"), T("4"), tokens="restored"),
        ex(T("n 4 c"), 2, T("4")),
        ex(T("n 4 c", "share"), 2, tokens="restored"),
    ],
    aten.batch_norm.default: [
        ex(T(dims), T("c"), T("c"), T("c"), T("c", "variance"), False, 0.1, 1e-5, False)
        for dims in ("(b n) c", "n c 4", "b c n")
    ],
    aten.log_softmax.int: [*along(fresh=False), ex(SHARES, 1, tokens="restored")],
    aten.embedding.default: [
        ex(T("v c"), T("b n", "v")),
        ex(T("v c"), T("n", "v")),
        ex(T("v c"), T("n b", "v")),
        ex(T("v c"), T("(b n)", "v")),
        ex(T("n c"), T("b m", "n"), tokens="restored"),
    ],
}
