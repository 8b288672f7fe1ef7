"""Run with TRITON_INTERPRET=1: every pointwise function and some combinations, against torch."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import torch

from tests.codegen.expressions import COMBINED, single
from tokenpass.codegen.triton.pointwise import MATHEMATICS, statements
from tokenpass.ops.pointwise import evaluate, parse
from tokenpass.ops.pointwise_functions import FUNCTIONS

KERNEL = """

@triton.jit
def f{at}(a0, a1, y, to, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    {body}
    tl.store(to + place, result + tl.zeros([SIZE], tl.float32))
"""


def main(folder):
    expressions = [one for name in FUNCTIONS for one in single(name)] + list(map(parse, COMBINED))
    text = "import triton\nimport triton.language as tl\n\n\n" + MATHEMATICS
    for at, expression in enumerate(expressions):
        body = "\n    ".join(statements(expression, lambda leaf: f"tl.load({leaf} + place)"))
        text += KERNEL.format(at=at, body=body)
    path = Path(folder) / "expressions.py"
    path.write_text(text)
    module = types.ModuleType("expressions")
    module.__file__ = str(path)
    sys.modules["expressions"] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    inputs = list(torch.randn(3, 1024, generator=torch.Generator().manual_seed(0)) * 2)
    for x in inputs:
        x[:4] = torch.tensor([0.0, 1.0, torch.nan, 1e-20])
    for at, expression in enumerate(expressions):
        to = torch.empty(1024)
        getattr(module, f"f{at}")[(1,)](*inputs, to, SIZE=1024)
        want = evaluate(expression, inputs[:2], inputs[2]).expand(1024)
        torch.testing.assert_close(
            to, want, rtol=4e-6, atol=1e-6, equal_nan=True, msg=lambda m, e=expression: f"{e}: {m}"
        )
    print(f"{len(expressions)} expressions")


if __name__ == "__main__":
    main(sys.argv[1])
