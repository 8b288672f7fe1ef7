"""Example calls of operators for which the place of a token matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .rule_language import TWO_D, Example, L, S, T, X, along, ex

aten = torch.ops.aten
END = 2**63 - 1
SHARES = T("b m n", "share")

POSITION: Mapping[Any, list[Example]] = {
    aten.select.int: [
        ex(X, 1, 0, tokens="read"),
        ex(X, 1, -1, tokens="read"),
        ex(X, 2, 0),
        ex(X, 0, -1, tokens="samples"),
        ex(TWO_D, 0, 1, tokens="restored"),
        ex(SHARES, 1, 0, tokens="restored"),
    ],
    aten.slice.Tensor: [
        ex(X, 1, 0, 1, tokens="read"),
        ex(X, 1, -1, END, tokens="read"),
        ex(X, 1, 0, END),
        ex(X, 2, 0, 1),
        ex(X, 1, 1, END, tokens="read"),
        ex(T("b n c"), 0, 0, 1, tokens="samples"),
        ex(SHARES, 1, 0, 1, tokens="restored"),
    ],
    aten.narrow.default: [
        ex(X, 1, 1, 1, tokens="read"),
        ex(X, 2, 0, 1),
        ex(SHARES, 1, 0, 1, tokens="restored"),
    ],
    aten.split.Tensor: [
        ex(X, 1, 1, tokens="restored"),
        ex(T("b n (3 c)"), L("c"), -1, out="b n c"),
        ex(SHARES, 1, 1, tokens="restored"),
    ],
    aten.split.sizes: [
        ex(T("b n 3"), [1, 2], -1),
        ex(T("b 3 n"), [2, 1], 1),
        ex(T("b 3 n", "share"), [2, 1], 1, tokens="restored"),
    ],
    aten.split_with_sizes.default: [
        ex(T("b n 3"), [1, 2], -1),
        ex(T("n (2 c)"), S("c c"), 1),
        ex(T("b 3 n", "share"), [2, 1], 1, tokens="restored"),
    ],
    aten.chunk.default: [
        ex(T("b n c"), 1, 0, tokens="samples"),
        ex(T("b n (3 c)"), 3, -1),
        ex(X, 2, 1, tokens="restored"),
        ex(SHARES, 1, 1, tokens="restored"),
    ],
    aten.unbind.int: [
        ex(T("b n 3 c"), 2),
        ex(X, 1, tokens="restored"),
        ex(T("3 b n c")),
        ex(SHARES, 1, tokens="restored"),
    ],
    aten.cumsum.default: [*along(fresh=False), ex(SHARES, 1, tokens="restored")],
    aten.cumprod.default: [*along(fresh=False), ex(SHARES, 1, tokens="restored")],
    aten.roll.default: [
        ex(X, [1], [1], tokens="restored"),
        ex(X, [1], [2]),
        ex(X, [1], tokens="restored"),
        ex(SHARES, [1], [1], tokens="restored"),
    ],
    aten.flip.default: [
        ex(X, [0], tokens="samples"),
        ex(X, [1], tokens="restored"),
        ex(X, [-1]),
        ex(SHARES, [1], tokens="restored"),
    ],
    aten.diff.default: [
        ex(X, 1, 1, tokens="restored"),
        ex(X, 1, -1),
        ex(T("b 3 n", "share"), 1, 1, tokens="restored"),
    ],
    aten.sort.default: [*along(fresh=True), ex(SHARES, 1, tokens="restored")],
    aten.sort.stable: [
        ex(X, stable=True, dim=1, tokens="restored", out="b ? c"),
        ex(X, stable=True, dim=2, out="b n ?"),
        ex(TWO_D, stable=True, dim=1, out="(b n) ?"),
        ex(SHARES, stable=True, dim=1, tokens="restored"),
    ],
    aten.argsort.default: [*along(fresh=True), ex(SHARES, 1, tokens="restored")],
    aten.argsort.stable: [
        ex(X, stable=True, dim=1, tokens="restored", out="b ? c"),
        ex(X, stable=True, dim=2, out="b n ?"),
        ex(TWO_D, stable=True, dim=1, out="(b n) ?"),
    ],
    aten.topk.default: [
        ex(X, 1, 1, tokens="restored"),
        ex(X, 1, 2, out="b n ?"),
        ex(SHARES, 1, 1, tokens="restored"),
        ex(T("b n 4"), 3, out="b n ?"),
    ],
    aten.tril.default: [
        ex(T("b n n"), tokens="restored"),
        ex(T("n 2 3"), 1),
        ex(T("b m n"), tokens="restored"),
        ex(T("n 2 3", "share"), tokens="restored"),
    ],
    aten.triu.default: [
        ex(T("n n"), 1, tokens="restored"),
        ex(T("n 2 3")),
        ex(T("n 2 3", "share"), tokens="restored"),
    ],
    aten.pad.default: [
        ex(X, [1, 0]),
        ex(X, [0, 0, 1, 1], tokens="restored"),
        ex(T("b c n"), [1, 2], tokens="restored"),
        ex(T("n b c", "share"), [1, 0], tokens="restored"),
    ],
    aten.constant_pad_nd.default: [
        ex(X, [1, 0]),
        ex(X, [0, 0, 0, 1], 2.0, tokens="restored"),
        ex(T("n b c", "share"), [1, 0], tokens="restored"),
    ],
    aten.index.Tensor: [
        ex(X, [None, None, T("k", "c")]),
        ex(X, [None, T("k", "n")], tokens="restored"),
        ex(X, [T("b", "b"), T("b", "n")], tokens="restored"),
        ex(T("b c n"), [None, T("k", "c")]),
        ex(T("n c"), [T("b m", "n")], tokens="restored"),
        ex(T("v c"), [T("b n", "v")]),
        ex(T("v c d"), [T("(b n)", "v")]),
        ex(T("c v"), [None, T("b n", "v")]),
        ex(T("v w"), [T("b n", "v"), T("b n", "w")]),
        ex(T("v w"), [T("b n", "v"), T("k 1 n", "w")]),
        ex(X, [T("k", "b")], tokens="samples"),
        ex(X, [T("b 1 c", "b"), None, T("b 1 c", "c")], tokens="samples"),
        ex(SHARES, [None, T("k", "m")], tokens="restored"),
        ex(X, [T("b", "range"), T("b", "n")], tokens="read"),
        ex(T("c v n"), [None, T("m n", "v")]),
    ],
    aten.gather.default: [
        ex(X, 1, T("b m c", "n"), tokens="restored", out="b m c"),
        ex(X, 2, T("b n k", "c"), out="b n k"),
        ex(T("b h n m"), -1, T("b h n n", "m")),
        ex(T("b h n m"), 3, T("1 1 1 k", "m"), tokens="restored"),
        ex(T("(b n) c"), 1, T("(b n) k", "c")),
        ex(T("k c"), 0, T("n c", "k")),
        ex(T("b k n"), 1, T("b n n", "k")),
    ],
    aten.scatter.value: [
        ex(X, 2, T("b n 1", "c"), 1.0, out="b n c"),
        ex(TWO_D, 1, T("(b n) 2", "c"), 0.0),
        ex(X, 1, T("b 1 c", "n"), 1.0, tokens="restored"),
    ],
    aten.scatter.src: [
        ex(X, 2, T("b n 1", "c"), T("b n 1"), out="b n c"),
        ex(X, 1, T("b 1 c", "n"), T("b 1 c"), tokens="restored"),
    ],
    aten.histc.default: [ex(TWO_D, 4, 0, 3, tokens="restored"), ex(X, 2, tokens="restored")],
    aten.index_put.default: [ex(X, [T("b", "b")], T("b n c"), tokens="restored")],
    aten.index_add.default: [ex(X, 0, T("b", "b"), T("b n c"), tokens="restored")],
}
