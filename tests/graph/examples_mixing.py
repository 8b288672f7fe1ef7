"""Example calls of operators that mix tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .rule_language import TWO_D, Example, T, X, ex

aten = torch.ops.aten

SHARES = T("b m n", "share")


def reduced(law: bool, *, kind: str = "float", one: bool = False) -> list[Example]:
    """`f(x, dims, keepdim)`: over tokens (by the law, or restored) and over something else."""
    summed = "pooled" if law else "restored"
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


MIXING: Mapping[Any, list[Example]] = {
    aten.matmul.default: [
        ex(X, T("c o")),
        ex(X, T("b c o")),
        ex(T("b h n d"), T("b h d m")),
        ex(T("b h n d"), T("b 1 d m")),
        ex(T("b h m d"), T("b h d n")),
        ex(T("n d"), T("b d n")),
        ex(T("b m n"), T("b n d"), tokens="mixed"),
        ex(T("m n"), T("b n d"), tokens="mixed"),
        ex(T("b n d"), T("d")),
        ex(T("n"), T("n d"), tokens="mixed"),
        ex(T("(b n)"), T("(b n) d"), tokens="mixed"),
        ex(T("m n"), T("n"), tokens="mixed"),
        ex(TWO_D, T("c o")),
        ex(T("m b"), T("n b c"), tokens="samples"),
        ex(SHARES, T("b n d"), tokens="mixed"),
        ex(T("b m n"), T("b n d", "share"), tokens="mixed"),
        ex(SHARES, T("b n d", "share"), tokens="product"),
    ],
    aten.mm.default: [
        ex(T("n c"), T("c o")),
        ex(TWO_D, T("c o")),
        ex(T("o c"), T("c (b n)")),
        ex(T("m n"), T("n d"), tokens="mixed"),
        ex(T("m (b n)"), T("(b n) d"), tokens="mixed"),
        ex(T("m n", "share"), T("n d"), tokens="mixed"),
        ex(T("m n", "share"), T("n d", "share"), tokens="product"),
    ],
    aten.bmm.default: [
        ex(T("b n d"), T("b d m")),
        ex(T("(b h) n d"), T("(b h) d m")),
        ex(T("(b h) m n"), T("(b h) n d"), tokens="mixed"),
        ex(SHARES, T("b n d"), tokens="mixed"),
        ex(SHARES, T("b n d", "share"), tokens="product"),
    ],
    aten.addmm.default: [
        ex(T("o"), TWO_D, T("c o")),
        ex(T("(b n) o"), TWO_D, T("c o")),
        ex(T("n 1"), T("n c"), T("c o")),
        ex(T("o"), T("n c"), T("c o"), beta=2, alpha=0.5),
        ex(T("d"), T("m n"), T("n d"), tokens="mixed"),
        ex(T("d"), T("m n", "share"), T("n d"), tokens="mixed"),
        ex(T("d"), T("n m", "share"), T("m d"), tokens="restored"),
    ],
    aten.conv1d.default: [
        ex(T("b c n"), T("o c 3"), T("o"), [1], [1], tokens="restored"),
        ex(T("n c 5"), T("o c 3")),
        ex(T("c n"), T("o c 1")),
        ex(T("b c n"), T("o c 1"), T("o")),
        ex(T("b c n"), T("o c 1"), None, [1], [1], tokens="restored"),
        ex(T("b c n"), T("o c 1"), None, [2], tokens="restored"),
        ex(T("n c 5", "share"), T("o c 3"), tokens="restored"),
    ],
    aten.conv2d.default: [
        ex(T("b c n 4"), T("o c 1 3")),
        ex(T("b c n 4"), T("o c 2 3"), None, [1, 1], [1, 0], tokens="restored"),
        ex(T("n c 4 4"), T("o c 3 3"), None, [2, 2]),
        ex(T("n c 4 4", "share"), T("o c 3 3"), tokens="restored"),
    ],
    aten.conv2d.padding: [
        ex(T("b c n 4"), T("o c 3 3"), None, [1, 1], "same", tokens="restored"),
        ex(T("n c 4 4"), T("o c 3 3"), None, [1, 1], "same"),
        ex(T("n c 4 4", "share"), T("o c 3 3"), None, [1, 1], "same", tokens="restored"),
    ],
    aten.conv3d.default: [
        ex(T("b c n 2 2"), T("o c 1 1 2")),
        ex(T("n c 2 2 2"), T("o c 2 2 2")),
        ex(T("n c 2 2 2", "share"), T("o c 2 2 2"), tokens="restored"),
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
        ex(T("b h n d", "share"), T("b h m d"), T("b h m e"), tokens="restored"),
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
        ex(SHARES, -1, tokens="restored"),
    ],
    aten._softmax.default: [
        ex(X, 1, False, tokens="mixed"),
        ex(X, 2, False),
        ex(SHARES, 2, False, tokens="restored"),
    ],
    aten.mean.dim: reduced(True) + [ex(SHARES, [2], tokens="pooled"), ex(SHARES, [1])],
    aten.mean.default: [
        ex(X, tokens="pooled"),
        ex(TWO_D, tokens="pooled"),
        ex(SHARES, tokens="pooled"),
    ],
    aten.sum.dim_IntList: reduced(True)
    + reduced(True, kind="bool")
    + reduced(True, kind="int")
    + [ex(SHARES, [2], tokens="pooled"), ex(SHARES, [1])],
    aten.sum.default: [
        ex(X, tokens="pooled"),
        ex(T("b n", "bool"), tokens="pooled"),
        ex(SHARES, tokens="pooled"),
    ],
    aten.amax.default: reduced(True) + [ex(SHARES, [1], tokens="restored")],
    aten.amin.default: reduced(True) + [ex(SHARES, [1], tokens="restored")],
    aten.any.dim: reduced(True, kind="bool", one=True),
    aten.all.dim: reduced(True, kind="bool", one=True),
    aten.var.correction: [
        ex(X, [1], tokens="restored"),
        ex(X, [2], correction=0),
        ex(X, tokens="restored"),
        ex(SHARES, [1], tokens="restored"),
    ],
    aten.var.dim: [
        ex(X, [1], False, tokens="restored"),
        ex(X, [2], False, True),
        ex(SHARES, [1], tokens="restored"),
    ],
    aten.std.correction: [
        ex(X, [1], tokens="restored"),
        ex(X, [2], correction=0, keepdim=True),
        ex(SHARES, [1], tokens="restored"),
    ],
    aten.argmax.default: reduced(False, one=True)
    + [
        ex(X, tokens="restored"),
        ex(SHARES, 1, tokens="restored"),
    ],
    aten.max.dim: reduced(False, one=True) + [ex(SHARES, 1, tokens="restored")],
    aten.linalg_vector_norm.default: [
        ex(X, 2, [-1], True),
        ex(X, 1, [1], True, tokens="restored"),
        ex(T("(b n) c"), 2, [1]),
        ex(X, tokens="restored"),
    ],
    aten.logsumexp.default: reduced(False) + [ex(SHARES, [1], tokens="restored")],
}
