"""Example calls of operators that only arrange dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .rule_language import LAYOUTS, TWO_D, Example, S, T, X, ex

aten = torch.ops.aten

SHARES = T("b m n", "share")

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
    ex(SHARES, S("(b m) n")),
]

LAYOUT: Mapping[Any, list[Example]] = {
    aten.view.default: RESHAPES,
    aten._unsafe_view.default: RESHAPES,
    aten.reshape.default: RESHAPES,
    aten.flatten.using_ints: [
        ex(X, 0, 1),
        ex(X, -2, -1),
        ex(X),
        ex(T("b h n n"), 1, 2),
        ex(T("b c n"), 0, 1),
        ex(SHARES, 0, 1),
    ],
    aten.unflatten.int: [
        ex(TWO_D, 0, S("b n")),
        ex(T("b n (h d)"), -1, S("h d")),
        ex(T("b (n c)"), 1, S("n c")),
        ex(T("b (h d) n", "share"), 1, S("h d")),
    ],
    aten.unsqueeze.default: [ex(X, at) for at in (0, 1, 2, 3, -1)] + [ex(TWO_D, 1), ex(SHARES, 1)],
    aten.squeeze.default: [ex(T("b 1 n 1 c")), ex(T("1 n c")), ex(T("b 1 n", "share"))],
    aten.squeeze.dim: [
        ex(T("b 1 n c"), 1),
        ex(X, 1),
        ex(T("n b 1"), -1),
        ex(T("b 1 n", "share"), 1),
    ],
    aten.squeeze.dims: [ex(T("1 b n 1"), [0, -1]), ex(X, [1]), ex(T("b 1 n", "share"), [1])],
    aten.transpose.int: [
        ex(X, 1, 2),
        ex(X, 0, 1),
        ex(T("b n h d"), -3, -2),
        ex(TWO_D, 0, 1),
        ex(SHARES, 1, 2),
    ],
    aten.permute.default: [
        ex(X, [2, 0, 1]),
        ex(X, [0, 1, 2]),
        ex(T("b n 3 h d"), [2, 0, 3, 1, 4]),
        ex(T("b n h d"), [0, -2, -3, -1]),
        ex(T("(b n) h d"), [1, 2, 0]),
        ex(SHARES, [2, 0, 1]),
    ],
    aten.movedim.int: [
        ex(X, 1, 0),
        ex(X, 0, -1),
        ex(T("b n h d"), 1, 2),
        ex(T("b n h d"), -1, 0),
        ex(SHARES, 1, 2),
    ],
    aten.t.default: [ex(T("n c")), ex(TWO_D), ex(T("n")), ex(T("m n", "share"))],
    aten.numpy_T.default: [ex(T("n c")), ex(TWO_D), ex(T("m n", "share"))],
    aten.view_as_complex.default: [ex(T("b n h 2")), ex(T("(b n) 2")), ex(T("n b 2"))],
    aten.view_as_real.default: [ex(T(dims, "complex")) for dims in LAYOUTS],
    aten.expand.default: [
        ex(T("b n 1"), S("b n c")),
        ex(T("1 n c"), S("k n c")),
        ex(T("n c"), S("k n c")),
        ex(T("b g 1 n d"), S("b g r n d")),
        ex(X, [-1, -1, -1]),
        ex(T("1 n", "share"), S("k n")),
    ],
    aten.repeat.default: [
        ex(X, [1, 1, 2]),
        ex(X, [1, 2, 1]),
        ex(T("1 n c"), S("k 1 1")),
        ex(X, [2, 3, 1, 1]),
        ex(SHARES, [2, 1, 1]),
    ],
    aten.cat.default: [
        ex([X, X], -1),
        ex([X, T("b n d")], 2),
        ex([T("b n c"), T("b n d"), T("b n c")], -1),
        ex([X, T("b m c")], 1, tokens="restored"),
        ex([X, X], 1, tokens="restored"),
        ex([T("b 1 c"), X], 1, tokens="restored"),
        ex([TWO_D, TWO_D], 1),
        ex([X, X], 0, tokens="samples"),
        ex([X, T("b n 0")], -1),
        ex([T("0"), X], 1),
        ex([SHARES, SHARES], 1, tokens="restored"),
    ],
    aten.stack.default: [
        ex([X, X], 0),
        ex([X, X], -1),
        ex([X, X, X], 1),
        ex([TWO_D, TWO_D], 1),
        ex([SHARES, SHARES], 0, tokens="restored"),
    ],
}
